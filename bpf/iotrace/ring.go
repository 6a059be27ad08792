package iotrace

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Ring watches how long io_uring has the calling process's reads, writes and flushes. It costs some 300 ns an I/O, so it
// is for as long as somebody looks.
type Ring struct {
	objects ringObjects
	links   []link.Link
}

// Ring starts to watch. The error says in words what is missing.
func (t *Trace) Ring() (_ *Ring, err error) {
	if t.why != "" {
		return nil, errors.New(t.why)
	}
	s, err := ownProcess()
	if err != nil {
		return nil, err
	}
	r := &Ring{}
	if err := loadRingObjects(&r.objects, nil); err != nil {
		return nil, errors.New(reason(err))
	}
	err = r.objects.RtSettings.Put(uint32(0), s)
	for _, p := range []*link.TracingOptions{{Program: r.objects.RtCompleted}, {Program: r.objects.RtSubmitted}} {
		if err == nil {
			var l link.Link
			if l, err = link.AttachTracing(*p); err == nil {
				r.links = append(r.links, l)
			}
		}
	}
	if err != nil {
		return nil, errors.Join(errors.New(reason(err)), r.Close())
	}
	return r, nil
}

// ownProcess names this process as the kernel's programs can tell it, whatever pid namespace it is in.
func ownProcess() (*ringRingSettings, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &ns); err != nil {
		return nil, fmt.Errorf("the pid namespace: %w", err)
	}
	return &ringRingSettings{Dev: ns.Dev, Ino: ns.Ino, Tgid: uint32(os.Getpid())}, nil
}

// Times reads how long io_uring had requests, since Ring.
func (r *Ring) Times() (out [operations]Histogram, err error) {
	for op := range operations {
		var each []ringHistogram
		if err := r.objects.RtTimes.Lookup(uint32(op), &each); err != nil {
			return out, fmt.Errorf("iotrace: read the times of io_uring: %w", err)
		}
		for _, h := range each {
			out[op].add(h.Sum, &h.Buckets)
		}
	}
	return out, nil
}

// Close takes the programs out of the kernel.
func (r *Ring) Close() error {
	var errs []error
	for _, l := range r.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, r.objects.Close())...)
}
