package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lunar/appliance/e2e/guest"
	"lunar/appliance/e2e/lab"
)

// in opens the lab of one scenario, runs it within the limit, and ends whatever was started; the folder stays if it failed.
func (o options) in(ctx context.Context, folder string, scenario func(context.Context, guest.Scenario) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	folder = filepath.Join(o.dir, folder)
	if err = os.RemoveAll(folder); err != nil {
		return err
	}
	l, err := lab.Open(folder, o.bin)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, l.Close()); err == nil {
			err = os.RemoveAll(folder)
		}
	}()
	return scenario(ctx, guest.Scenario{Image: o.image, Lab: l, JudgeOptions: guest.JudgeOptions{Only: o.only, Log: os.Stdout}})
}

// start serves LUNs of these sizes from the host by the target of that name.
func start(ctx context.Context, l *lab.Lab, name string, sizes ...int64) (guest.Target, error) {
	switch name {
	case "tgtd":
		return guest.StartTGTD(ctx, l, sizes...)
	case "Lunar":
		return guest.StartLunar(ctx, l, sizes...)
	}
	return nil, fmt.Errorf("unknown target %q: give LIO, tgtd or Lunar", name)
}

func (o options) judge(ctx context.Context, name string) error {
	fmt.Printf("== the list against %s\n", name)
	var column guest.Column
	err := o.in(ctx, name, func(ctx context.Context, s guest.Scenario) (err error) {
		column, err = listAgainst(ctx, s, name)
		return err
	})
	fmt.Printf("== %s: %d of %d commands as wanted\n", name, len(column.Results)-column.Failed(), len(column.Results))
	return errors.Join(err, o.keep(column))
}

// keep saves a whole run's results as they are; those of a part are put among the saved ones.
func (o options) keep(column guest.Column) error {
	if o.only == nil {
		return column.Save(o.dir)
	}
	saved, err := guest.LoadColumn(o.dir, column.Name)
	if err != nil {
		return err
	}
	saved.Update(column, guest.List())
	return saved.Save(o.dir)
}

func listAgainst(ctx context.Context, s guest.Scenario, name string) (guest.Column, error) {
	if name == "LIO" {
		return s.JudgeLIO(ctx)
	}
	t, err := start(ctx, s.Lab, name, guest.LUNBytes, guest.LUNBytes)
	if err != nil {
		return guest.Column{Name: name}, err
	}
	defer t.Close()
	return s.JudgeHost(ctx, name, t)
}

func (o options) bootFrom(ctx context.Context, name string) error {
	fmt.Printf("== a guest booted from a LUN of %s\n", name)
	return o.in(ctx, "boot-"+name, func(ctx context.Context, s guest.Scenario) error {
		t, err := start(ctx, s.Lab, name, guest.BootBytes)
		if err != nil {
			return err
		}
		defer t.Close()
		return s.Boot(ctx, guest.URL(t, 1))
	})
}

// report puts the table of all saved results into the page and fails if Lunar did.
func (o options) report() error {
	var columns []guest.Column
	for _, name := range []string{"LIO", "tgtd", "Lunar"} {
		column, err := guest.LoadColumn(o.dir, name)
		if err != nil {
			return err
		}
		if len(column.Results) > 0 {
			columns = append(columns, column)
		}
	}
	table := guest.Table(guest.List(), columns)
	if o.page != "" {
		if err := rewrite(o.page, table); err != nil {
			return err
		}
	}
	return verdict(columns)
}

// verdict fails for what the list does not want of Lunar, and only of Lunar.
func verdict(columns []guest.Column) error {
	for _, c := range columns {
		if c.Name == "Lunar" && c.Failed() > 0 {
			return fmt.Errorf("lunar: %d commands not as wanted:\n%s", c.Failed(), strings.Join(c.Complaints(), "\n"))
		}
	}
	return nil
}

func rewrite(page, table string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	if text, err = guest.Insert(text, table); err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	return os.WriteFile(page, text, 0o644)
}
