package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"lunar/appliance/e2e/lab"
)

// Sample is one run of a load, or the medians of several.
type Sample struct {
	IOPS float64 `json:"iops"`
	P50  float64 `json:"p50us"` // microseconds
	P99  float64 `json:"p99us"` // microseconds
	// Completed counts the warm-up's commands too, which the other figures leave out.
	Completed float64 `json:"completed"`
	// CPU is the target's CPU seconds per 100,000 commands.
	CPU float64 `json:"-"`
}

// ticksPerSecond is USER_HZ, which Linux fixes for /proc.
const ticksPerSecond = 100

// measure runs the client once and charges the target with the CPU time that it used meanwhile.
func measure(ctx context.Context, client string, export *lab.Export, load Load, seconds float64) (Sample, error) {
	limit, cancel := context.WithTimeout(ctx, time.Duration((seconds+30)*float64(time.Second)))
	defer cancel()
	before, err := cpuSeconds(export.Target.PID())
	if err != nil {
		return Sample{}, err
	}
	output, err := lab.Run(limit, append([]string{client}, load.arguments(export.URLs[0], seconds)...)...)
	if err != nil {
		return Sample{}, err
	}
	after, err := cpuSeconds(export.Target.PID())
	if err != nil {
		return Sample{}, err
	}
	var s Sample
	if err := json.Unmarshal([]byte(output), &s); err != nil {
		return Sample{}, fmt.Errorf("the client's answer: %w", err)
	}
	s.CPU = (after - before) * 1e5 / s.Completed
	return s, nil
}

// cpuSeconds is the time that all threads of a process have used.
func cpuSeconds(pid int) (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("the target is gone: %w", err)
	}
	return parseStat(string(stat))
}

// parseStat adds utime and stime, fields 14 and 15 of proc(5); the name in field 2 may hold spaces.
func parseStat(stat string) (float64, error) {
	_, rest, found := strings.Cut(stat[strings.LastIndexByte(stat, ')')+1:], " ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/PID/stat: %q has too few fields", stat)
	}
	user, err := strconv.ParseUint(fields[11], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/stat: %w", err)
	}
	system, err := strconv.ParseUint(fields[12], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/stat: %w", err)
	}
	return float64(user+system) / ticksPerSecond, nil
}

// medians takes each figure's median by itself.
func medians(samples []Sample) Sample {
	of := func(figure func(Sample) float64) float64 {
		values := make([]float64, len(samples))
		for i, s := range samples {
			values[i] = figure(s)
		}
		return median(values)
	}
	return Sample{
		IOPS: of(func(s Sample) float64 { return s.IOPS }),
		P50:  of(func(s Sample) float64 { return s.P50 }),
		P99:  of(func(s Sample) float64 { return s.P99 }),
		CPU:  of(func(s Sample) float64 { return s.CPU }),
	}
}

func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
