package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// client keeps depth requests under way on each connection and prints a Result.
func client(address string, args []string, length time.Duration) error {
	if len(args) != 2 {
		return errors.New("-client needs two arguments: connections, depth")
	}
	connections, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	depth, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var (
		ended sync.WaitGroup
		mu    sync.Mutex // guards all and failed
		all   []time.Duration
		fails error
	)
	for range connections {
		ended.Go(func() {
			times, err := load(address, depth, length)
			mu.Lock()
			defer mu.Unlock()
			all, fails = append(all, times...), errors.Join(fails, err)
		})
	}
	ended.Wait()
	if fails != nil {
		return fails
	}
	slices.Sort(all)
	return json.NewEncoder(os.Stdout).Encode(Result{
		Rate: float64(len(all)) / length.Seconds(),
		P50:  float64(all[len(all)/2].Nanoseconds()) / 1e3,
	})
}

// load returns how long each request took.
func load(address string, depth int, length time.Duration) ([]time.Duration, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // nothing is lost
	var request [requestLen]byte
	var answer [answerLen]byte
	began := make([]time.Time, depth)
	times := make([]time.Duration, 0, 1<<20)
	for i := range began {
		began[i] = time.Now()
		if _, err := c.Write(request[:]); err != nil {
			return nil, err
		}
	}
	for i, end := 0, time.Now().Add(length); time.Now().Before(end); i = (i + 1) % depth {
		if _, err := io.ReadFull(c, answer[:]); err != nil {
			return nil, err
		}
		now := time.Now()
		times = append(times, now.Sub(began[i]))
		began[i] = now
		if _, err := c.Write(request[:]); err != nil {
			return nil, err
		}
	}
	return times, nil
}
