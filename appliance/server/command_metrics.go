package server

import (
	"cmp"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lunar/appliance/api"
)

// CommandStats are the times of this node's commands since the first scrape.
type CommandStats struct {
	Operations []OperationStats
	Stages     []StageStats
	LUNs       []LUNCommands       // those that had any, MaxLUNSeries at most
	Initiators []InitiatorCommands // likewise
}

// OperationStats are those of reads, writes or others.
type OperationStats struct {
	Operation string
	Times     api.Histogram
	Slow      []SlowCommand // since the scrape before
}

// SlowCommand is an exemplar.
type SlowCommand struct {
	Target    string
	LUN       uint16
	Initiator string
	Took      time.Duration
	At        time.Time
}

// StageStats are the times that commands spent in one stage.
type StageStats struct {
	Stage string
	Times api.Histogram
}

// LUNCommands count a LUN's commands.
type LUNCommands struct {
	Target          string
	LUN             uint16
	Operation       string
	Commands, Bytes uint64
}

// InitiatorCommands count an initiator's commands.
type InitiatorCommands struct {
	Initiator, Operation string
	Commands, Bytes      uint64
}

var (
	commandTimes      = desc("command_duration_seconds", "Time from a command's arrival to its answer.", "operation")
	stageTimes        = desc("stage_duration_seconds", "Time that commands spent in one stage of their way.", "stage")
	lunCommands       = desc("lun_commands_total", "Commands on a LUN.", "target", "lun", "operation")
	lunBytes          = desc("lun_bytes_total", "Bytes that they moved.", "target", "lun", "operation")
	initiatorCommands = desc("initiator_commands_total", "Commands of an initiator.", "initiator", "operation")
	initiatorBytes    = desc("initiator_bytes_total", "Bytes that they moved.", "initiator", "operation")
	commandDescs      = []*prometheus.Desc{commandTimes, stageTimes, lunCommands, lunBytes, initiatorCommands, initiatorBytes}
)

func collectCommands(out chan<- prometheus.Metric, c *CommandStats) {
	if c == nil {
		return
	}
	ch := series(out)
	for i := range c.Operations {
		o := &c.Operations[i]
		ch <- withExemplars(histogram(commandTimes, &o.Times, o.Operation), o.Slow)
	}
	for i := range c.Stages {
		ch <- histogram(stageTimes, &c.Stages[i].Times, c.Stages[i].Stage)
	}
	for _, l := range c.LUNs {
		number := strconv.Itoa(int(l.LUN))
		ch.counter(lunCommands, float64(l.Commands), l.Target, number, l.Operation)
		ch.counter(lunBytes, float64(l.Bytes), l.Target, number, l.Operation)
	}
	for _, i := range c.Initiators {
		ch.counter(initiatorCommands, float64(i.Commands), i.Initiator, i.Operation)
		ch.counter(initiatorBytes, float64(i.Bytes), i.Initiator, i.Operation)
	}
}

// The classes that metrics tell: from 16 µs to 17 s.
const firstClass, lastClass = 4, 24

func histogram(d *prometheus.Desc, h *api.Histogram, labels ...string) prometheus.Metric {
	buckets := map[float64]uint64{}
	var below uint64
	for i, n := range h.Buckets {
		below += n
		if i >= firstClass-1 && i <= lastClass-1 {
			buckets[api.BucketEnd(i).Seconds()] = below
		}
	}
	return prometheus.MustNewConstHistogram(d, below, h.Sum.Seconds(), buckets, labels...)
}

// maxExemplarName keeps an exemplar's labels within OpenMetrics' 128 characters.
const maxExemplarName = 40

// withExemplars names the slowest commands; one without exemplars stays as it is.
func withExemplars(m prometheus.Metric, slow []SlowCommand) prometheus.Metric {
	var all []prometheus.Exemplar
	for i := range slow {
		s := &slow[i]
		all = append(all, prometheus.Exemplar{Value: s.Took.Seconds(), Timestamp: s.At, Labels: prometheus.Labels{
			"target": tail(s.Target), "lun": strconv.Itoa(int(s.LUN)), "initiator": tail(s.Initiator),
		}})
	}
	if len(all) == 0 {
		return m
	}
	with, err := prometheus.NewMetricWithExemplars(m, all...)
	if err != nil {
		return m
	}
	return with
}

// tail is the end of a name, which tells it from others.
func tail(name string) string {
	r := []rune(name)
	return cmp.Or(string(r[max(0, len(r)-maxExemplarName):]), "none")
}
