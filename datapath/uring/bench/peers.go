package main

import (
	"os"
	"runtime/pprof"
)

// more are peers that are built in by a tag.
var more []func(*device) (peer, error)

// openPeers opens every peer; ours is the first, fio the last.
func openPeers(dev *device, o options) ([]peer, error) {
	ours, err := newEngine(dev, o)
	if err != nil {
		return nil, err
	}
	peers := []peer{ours, &goroutines{dev}}
	for _, open := range more {
		p, err := open(dev)
		if err != nil {
			return nil, err
		}
		peers = append(peers, p)
	}
	return append(peers, &fio{dev}), nil
}

func startProfile(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close()
	}, nil
}
