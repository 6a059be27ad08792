package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
	"lunar/appliance/slot"
)

func (c *cli) systemCommand() *cobra.Command {
	cmd := noun("system", "The appliance's image: its two slots, and updates",
		c.verb("status", "Show both slots, and what the next boot does", 0, c.systemStatus),
		c.systemUpdate(), c.systemRollback(), c.systemBundle(), c.systemConfirm(), c.systemConfigure(), c.systemConsole(), c.systemFiles())
	cmd.Long = "An appliance booted from an image has two slots, each with a whole system. An update is written to the one that is not\n" +
		"booted and tried at the next boot. It stays when lunard becomes ready there, else the machine goes back by itself."
	return cmd
}

func (c *cli) systemStatus(context.Context, []string) error {
	s, err := slot.Here()
	if err != nil {
		return err
	}
	st, err := s.Status()
	if err != nil {
		return systemError(err)
	}
	return c.printSlots(&st)
}

func (c *cli) printSlots(st *slot.Status) error {
	if c.json {
		return c.printJSON(st)
	}
	err := printList(c, st.Slots, "SLOT VERSION BOOTED DEFAULT TRIES-LEFT FAILED", func(s *slot.Slot) []string {
		left := ""
		if s.Left > 0 {
			left = fmt.Sprint(s.Left)
		}
		return []string{s.Name, s.Version, yes(s.Booted), yes(s.Default), left, yes(s.Failed)}
	})
	if err == nil {
		_, err = fmt.Fprintf(c.out, "\n%s\n", st.Text)
	}
	return err
}

// systemError gives an error of the slots its code.
func systemError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, slot.ErrNoAppliance):
		return api.Errorf(api.Unavailable, "%v", err).WithHint("a package is updated by apt")
	case errors.Is(err, slot.ErrBundle):
		return api.Errorf(api.Invalid, "%v", err).WithHint("the slot that runs is as it was")
	case errors.Is(err, slot.ErrBusy), errors.Is(err, slot.ErrTrial):
		return api.Errorf(api.Busy, "%v", err)
	}
	return err
}

func (c *cli) systemUpdate() *cobra.Command {
	var reboot bool
	cmd := c.verb("update FILE|URL [--reboot]", "Write an update to the slot that is not booted, for the next boot", 1,
		func(ctx context.Context, args []string) error {
			s, err := slot.Here()
			if err != nil {
				return err
			}
			m, err := s.Update(ctx, source(args[0]), c.slotProgress())
			if err != nil {
				return systemError(err)
			}
			if !reboot {
				return c.printOne(m, "%s is written; the next boot tries it: `lunarctl node drain` and `systemctl reboot`, or --reboot here", m.Version)
			}
			if err := c.printOne(m, "%s is written; the machine restarts to try it", m.Version); err != nil {
				return err
			}
			return c.handOverAndReboot(ctx)
		})
	cmd.Long = "Write an update to the slot that is not booted, and have the next boot try it. A file is verified whole before anything is\n" +
		"written. Where /etc/lunar/update.pem is, the update must be signed by that ed25519 key. A power cut at any moment leaves a\n" +
		"machine that boots."
	cmd.Flags().BoolVar(&reboot, "reboot", false, "then move the volumes that this node coordinates to others, and restart the machine")
	return cmd
}

// slotProgress shows how much is written, on a terminal.
func (c *cli) slotProgress() func(done, size int64) {
	file, ok := c.err.(*os.File)
	if !ok || c.json {
		return nil
	}
	if info, err := file.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	return func(done, size int64) {
		end := ""
		if done == size {
			end = "\n"
		}
		_, _ = fmt.Fprintf(c.err, "\r%3d%% of %s%s", done*100/size, api.FormatSize(size), end)
	}
}

// source is a file, or what is at an address.
func source(name string) slot.Source {
	if !strings.HasPrefix(name, "http://") && !strings.HasPrefix(name, "https://") {
		return slot.File(name)
	}
	return slot.Source{Open: func(ctx context.Context) (io.ReadCloser, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, name, http.NoBody)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			_ = resp.Body.Close()
			return nil, fmt.Errorf("%s: %s", name, resp.Status)
		}
		return resp.Body, nil
	}}
}

func (c *cli) systemRollback() *cobra.Command {
	var reboot, force bool
	cmd := c.verb("rollback [--reboot] [--force]", "Have the next boot try the other slot, which ran before the update", 0,
		func(ctx context.Context, _ []string) error {
			s, err := slot.Here()
			if err != nil {
				return err
			}
			st, err := s.Rollback(force)
			if err != nil {
				return systemError(err)
			}
			if err := c.printSlots(&st); err != nil || !reboot {
				return err
			}
			return c.handOverAndReboot(ctx)
		})
	cmd.Flags().BoolVar(&reboot, "reboot", false, "then move the volumes that this node coordinates to others, and restart the machine")
	cmd.Flags().BoolVar(&force, "force", false, "also a slot that was tried and given up")
	return cmd
}

func (c *cli) systemBundle() *cobra.Command {
	var version, key string
	cmd := c.verb("bundle IMAGE FILE --version V [--key SECRET]", "Make an update of a slot's image", 2,
		func(_ context.Context, args []string) error { return c.bundle(args[0], args[1], version, key) })
	cmd.Flags().StringVar(&version, "version", "", "the image's version")
	cmd.Flags().StringVar(&key, "key", "", "sign with this key, made by `openssl genpkey -algorithm ed25519`")
	_ = cmd.MarkFlagRequired("version")
	return cmd
}

// bundle shows the file only when it is whole.
func (c *cli) bundle(image, file, version, keyFile string) error {
	in, err := os.Open(image)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	var sign ed25519.PrivateKey
	if keyFile != "" {
		if sign, err = slot.SecretKey(keyFile); err != nil {
			return err
		}
	}
	out, err := os.CreateTemp(filepath.Dir(file), ".lunar-bundle-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(out.Name()) }()
	m, err := slot.Pack(out, in, version, sign)
	if err = firstError(err, out.Sync); err == nil {
		err = out.Chmod(0o644)
	}
	if err = firstError(err, out.Close); err != nil {
		return systemError(err)
	}
	if err := os.Rename(out.Name(), file); err != nil {
		return err
	}
	return c.printOne(m, "%s: %s, %s of image", file, m.Version, api.FormatSize(m.Size))
}
