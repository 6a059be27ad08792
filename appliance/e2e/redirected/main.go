package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", "/dev/shm", "folder for the devices' files")
	flag.BoolVar(&o.tls, "tls", false, "mutual TLS, for both")
	flag.BoolVar(&o.veth, "veth", false, "servers in a network namespace of their own, behind a bridge; else loopback")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; shown are medians")
	flag.DurationVar(&o.time, "time", time.Second, "per load and server")
	flag.StringVar(&o.only, "only", "", "only loads whose name has this")
	flag.StringVar(&o.peer, "peer", "--cache=none --aio=native", "qemu-nbd's options for the file")
	flag.StringVar(&o.profile, "profile", "", "file for a CPU profile of our server")
	flag.BoolVar(&o.blocking, "blocking", false, "without an engine: our server blocks a thread per I/O")
	serve := flag.String("serve", "", "")
	listen := flag.String("listen", "", "")
	keys := flag.String("keys", "", "")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	run := o.run
	if *serve != "" {
		run = func(ctx context.Context) error {
			return serveDevice(ctx, *serve, *listen, *keys, o.profile, o.blocking)
		}
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "redirected:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing to do any more
	}
}
