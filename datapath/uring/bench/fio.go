package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"time"
)

// fio is the peer that the bars are set by.
type fio struct{ dev *device }

func (*fio) name() string { return "fio" }
func (*fio) close()       {}

// fioReport is the part of fio's JSON output that is read.
type fioReport struct {
	Jobs []struct {
		Read, Write fioSide
		UsrCPU      float64 `json:"usr_cpu"` // per cent of the run time
		SysCPU      float64 `json:"sys_cpu"`
	}
}

type fioSide struct {
	IOPS    float64
	Total   int64 `json:"total_ios"`
	Runtime int64 // ms
	LatNS   struct {
		Percentile map[string]float64
	} `json:"lat_ns"`
}

func (f *fio) run(w workload, d time.Duration) (result, error) {
	args := []string{
		"--name=bench", "--ioengine=io_uring", "--direct=1", "--fixedbufs", "--registerfiles",
		"--filename=" + f.dev.path, fmt.Sprintf("--size=%d", f.dev.size), "--rw=" + w.mode(),
		fmt.Sprintf("--bs=%d", w.block), fmt.Sprintf("--iodepth=%d", w.depth),
		"--time_based", fmt.Sprintf("--runtime=%dms", d.Milliseconds()),
		"--norandommap", "--randrepeat=0", "--clat_percentiles=0", "--lat_percentiles=1", "--percentile_list=50",
		"--output-format=json",
	}
	out, err := exec.Command("fio", args...).Output()
	if err != nil {
		return result{}, fmt.Errorf("fio (is it installed?): %w", err)
	}
	var report fioReport
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		return result{}, fmt.Errorf("fio's report: %d jobs, %w", len(report.Jobs), err)
	}
	return report.result(w), nil
}

func (r *fioReport) result(w workload) result {
	job := r.Jobs[0]
	side := job.Read
	if w.write {
		side = job.Write
	}
	busy := (job.UsrCPU + job.SysCPU) / 100 * float64(side.Runtime) * float64(time.Millisecond)
	return result{
		iops: side.IOPS,
		p50:  time.Duration(side.LatNS.Percentile["50.000000"]),
		cpu:  time.Duration(busy / float64(max(side.Total, 1))),
	}
}
