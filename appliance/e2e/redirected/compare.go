package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lunar/appliance/e2e/lab"
	"lunar/datapath/wire/nbd"
)

type options struct {
	dir, only, peer, profile string
	tls, blocking, veth      bool
	rounds                   int
	time                     time.Duration
}

// site is where the servers run: an address, and what to run a command there.
type site struct {
	address string
	command []string
}

// site is this network namespace, or a host behind a bridge.
func (o options) site(ctx context.Context, l *lab.Lab) (site, error) {
	if !o.veth {
		return site{address: "127.0.0.1"}, nil
	}
	n, err := l.Network(ctx)
	if err != nil {
		return site{}, err
	}
	h, err := l.Host(ctx, "server")
	if err != nil {
		return site{}, err
	}
	a, err := h.Join(ctx, n, 1)
	return site{a.String(), []string{"ip", "netns", "exec", h.Namespace}}, err
}

// server is one of those that are compared.
type server struct {
	name   string
	pid    int
	client *nbd.Client
}

func (o options) run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(o.dir, "lunar-redirected-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := lab.Open(dir, ".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	keys := ""
	if o.tls {
		keys = l.Path("keys")
		if err := makeKeys(keys); err != nil {
			return err
		}
	}
	at, err := o.site(ctx, l)
	if err != nil {
		return err
	}
	ours, err := o.ours(l, at, keys)
	if err != nil {
		return err
	}
	defer ours.client.Close() //nolint:errcheck // returns nil
	peer, err := o.qemu(ctx, l, at, keys)
	if err != nil {
		return err
	}
	defer peer.client.Close() //nolint:errcheck // returns nil
	return o.compare(ctx, []*server{ours, peer})
}

// start starts a server and connects to it.
func start(l *lab.Lab, at site, name, keys string, argv func(port string) []string) (*server, error) {
	port, err := lab.FreePort()
	if err != nil {
		return nil, err
	}
	p, err := l.Start(append(slices.Clone(at.command), argv(strconv.Itoa(port))...)...)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(at.address, strconv.Itoa(port))
	if err := lab.Poll(20*time.Second, func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			err = c.Close()
		}
		return err
	}); err != nil {
		return nil, fmt.Errorf("%s does not listen: %w\n%s", name, err, p.Log())
	}
	o := nbd.ClientOptions{Address: address, Export: nbd.Plain("disk")}
	if keys != "" {
		if o.TLS, err = loadKeys(keys, "client"); err != nil {
			return nil, err
		}
	}
	c, err := nbd.NewClient(o)
	return &server{name, p.PID(), c}, err
}

func (o options) ours(l *lab.Lab, at site, keys string) (*server, error) {
	loop, err := l.Loop("ours", 1<<30)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(l, at, "lunar", keys, func(port string) []string {
		argv := []string{self, "-serve", loop.Path, "-listen", net.JoinHostPort(at.address, port), "-keys", keys, "-blocking=" + strconv.FormatBool(o.blocking)}
		if o.profile != "" {
			if path, err := filepath.Abs(o.profile); err == nil {
				argv = append(argv, "-profile", path)
			}
		}
		return argv
	})
}

// qemu serves a file that is all written, too.
func (o options) qemu(ctx context.Context, l *lab.Lab, at site, keys string) (*server, error) {
	loop, err := l.Loop("peer", 1<<30)
	if err != nil {
		return nil, err
	}
	m, err := l.MountXFS(ctx, loop, "mnt")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(m.Path, "disk")
	if _, err := lab.Run(ctx, "dd", "if=/dev/zero", "of="+file, "bs=1M", fmt.Sprintf("count=%d", imageSize>>20), "oflag=direct", "conv=fsync"); err != nil {
		return nil, err
	}
	return start(l, at, "qemu-nbd", keys, func(port string) []string {
		argv := []string{"qemu-nbd", "-f", "raw", "-t", "-e", "16", "-b", at.address, "-p", port, "-x", "disk"}
		argv = append(argv, strings.Fields(o.peer)...)
		if keys != "" {
			argv = append(argv, "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir="+keys, "--tls-creds", "tls0")
		}
		return append(argv, file)
	})
}

// compare runs every load on every server in turns, and prints medians, and medians of the ratios
// within a round.
func (o options) compare(ctx context.Context, servers []*server) error {
	fmt.Printf("# %d rounds of %v, TLS %v, veth %v, qemu-nbd %s\n", o.rounds, o.time, o.tls, o.veth, o.peer)
	fmt.Printf("%-20s %-9s %9s %10s %10s %10s\n", "LOAD", "SERVER", "IOPS", "CPU-US/IO", "IOPS/QEMU", "CPU/QEMU")
	for _, l := range loads {
		if !strings.Contains(l.name, o.only) {
			continue
		}
		samples := make([][]sample, len(servers))
		for range o.rounds {
			for i, s := range servers {
				x, err := l.run(ctx, s.client, s.pid, o.time)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				samples[i] = append(samples[i], x)
			}
		}
		for i, s := range servers {
			var iops, cpu, iopsRatio, cpuRatio []float64
			for r, x := range samples[i] {
				base := samples[len(servers)-1][r]
				iops, cpu = append(iops, x.iops), append(cpu, x.cpu)
				iopsRatio, cpuRatio = append(iopsRatio, x.iops/base.iops), append(cpuRatio, x.cpu/base.cpu)
			}
			fmt.Printf("%-20s %-9s %9.0f %10.2f %10.2f %10.2f\n", l.name, s.name, median(iops), median(cpu), median(iopsRatio), median(cpuRatio))
		}
	}
	return nil
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}
