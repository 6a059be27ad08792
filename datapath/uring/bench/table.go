package main

import "fmt"

func header() {
	fmt.Printf("%-20s %-9s %9s %9s %9s %8s %8s %8s\n",
		"WORKLOAD", "ENGINE", "IOPS", "P50-US", "CPU-US/IO", "IOPS/FIO", "P50/FIO", "CPU/FIO")
}

// rows prints a workload's medians and their ratios to the last peer, fio.
func rows(w workload, peers []peer, results [][]result) {
	base := median(results[len(results)-1])
	for i, p := range peers {
		m := median(results[i])
		fmt.Printf("%-20s %-9s %9.0f %9.1f %9.2f %8.2f %8.2f %8.2f\n", w, p.name(), m.iops,
			float64(m.p50)/1e3, float64(m.cpu)/1e3, m.iops/base.iops,
			float64(m.p50)/float64(base.p50), float64(m.cpu)/float64(max(base.cpu, 1)))
	}
}
