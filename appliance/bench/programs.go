package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lunar/appliance/e2e/lab"
)

// compile makes a program of this folder's C sources.
func compile(ctx context.Context, source, program string, libraries ...string) error {
	args := append([]string{"-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source}, libraries...)
	if out, err := exec.CommandContext(ctx, "gcc", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("compile %s: %w\n%s", source, err, out)
	}
	return nil
}

const (
	floorPrefix = "floor-"
	floorStart  = 15 * time.Second
)

// floor starts floor/floor.c, which takes one command at a time of a connection, on a loop device without a file system, where lunard's layouts lead too.
func (f *field) floor(ctx context.Context, name, mode string) (*lab.Export, error) {
	device, err := f.lab.Loop(name+".disk", imageSize)
	if err != nil {
		return nil, err
	}
	program := f.lab.Path(name)
	if err := compile(ctx, filepath.Join(f.source, "floor", "floor.c"), program); err != nil {
		return nil, err
	}
	port, err := lab.FreePort()
	if err != nil {
		return nil, err
	}
	p, err := f.lab.Start(program, mode, device.Path, strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	url := fmt.Sprintf("iscsi://%s/%s/0", address, iqn)
	return &lab.Export{URLs: []string{url}, Target: p}, lab.Poll(floorStart, func() error {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// takes tells whether a target can do a load; only the floors cannot do each.
func takes(target string, l Load) error {
	mode, ok := strings.CutPrefix(target, floorPrefix)
	most := 1
	if mode == "ring" {
		most = 64
	}
	if ok && (l.Depth > 1 || l.Connections > most) {
		return fmt.Errorf("%s takes depth 1 and at most %d connections, not %s: give -loads 'QD1 ' -connections %d", target, most, l, most)
	}
	return nil
}
