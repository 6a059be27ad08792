package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	"lunar/datapath/uring"
)

// server takes a connection over; it ends with the peer's close.
type server func(r *uring.Ring, c *net.TCPConn) error

var servers = []struct {
	name  string
	serve server
}{{"ring", serveRing}, {"netpoll", serveNetpoll}}

func main() {
	address := flag.String("client", "", "be the client of this `address`")
	rounds := flag.Int("rounds", 5, "`number` of rounds")
	length := flag.Duration("time", time.Second, "`length` of each run")
	flag.Parse()
	var err error
	if *address != "" {
		err = client(*address, flag.Args(), *length)
	} else {
		err = compare(*rounds, *length)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "network:", err)
		os.Exit(1)
	}
}

func compare(rounds int, length time.Duration) (err error) {
	e, err := uring.Open(uring.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = e.Close(context.Background()) }()
	fmt.Printf("%-12s %6s %-8s %10s %8s %10s\n", "CONNECTIONS", "DEPTH", "SERVER", "REQUESTS/S", "P50-US", "CPU-US/REQ")
	for _, connections := range []int{1, 4} {
		for _, depth := range []int{1, 8} {
			results := make([][]Result, len(servers))
			for range rounds {
				for i, s := range servers {
					r, err := run(e, s.serve, connections, depth, length)
					if err != nil {
						return fmt.Errorf("%s: %w", s.name, err)
					}
					results[i] = append(results[i], r)
				}
			}
			for i, s := range servers {
				m := medians(results[i])
				fmt.Printf("%-12d %6d %-8s %10.0f %8.1f %10.2f\n", connections, depth, s.name, m.Rate, m.P50, m.CPU)
			}
		}
	}
	return nil
}

// Result is one run, or the medians of several.
type Result struct {
	Rate float64 // requests per second
	P50  float64 // microseconds
	CPU  float64 `json:"-"` // the server's microseconds per request
}

func medians(all []Result) Result {
	middle := func(figure func(Result) float64) float64 {
		v := make([]float64, len(all))
		for i, r := range all {
			v[i] = figure(r)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return Result{
		Rate: middle(func(r Result) float64 { return r.Rate }),
		P50:  middle(func(r Result) float64 { return r.P50 }),
		CPU:  middle(func(r Result) float64 { return r.CPU }),
	}
}

// run serves one client process.
func run(e *uring.Engine, serve server, connections, depth int, length time.Duration) (r Result, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return r, err
	}
	defer l.Close() //nolint:errcheck // nothing is lost
	cmd := exec.Command("/proc/self/exe", "-time", length.String(), "-client", l.Addr().String(),
		strconv.Itoa(connections), strconv.Itoa(depth))
	cmd.Stderr = os.Stderr
	accepted := make(chan error, 1)
	go func() { accepted <- accept(l, e.Ring(0), serve, connections) }()
	before := cpuTime()
	out, err := cmd.Output()
	if err != nil {
		return r, err
	}
	spent := cpuTime() - before
	if err := <-accepted; err != nil {
		return r, err
	}
	err = json.Unmarshal(out, &r)
	r.CPU = float64(spent.Microseconds()) / (r.Rate * length.Seconds())
	return r, err
}

func accept(l net.Listener, r *uring.Ring, serve server, connections int) error {
	for range connections {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := serve(r, c.(*net.TCPConn)); err != nil { //nolint:errcheck // a TCP listener has TCP connections
			return err
		}
	}
	return nil
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
