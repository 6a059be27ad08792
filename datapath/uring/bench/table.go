package main

import "fmt"

func header() {
	fmt.Printf("%-20s %-9s %9s %9s %9s %8s %8s %8s\n",
		"WORKLOAD", "ENGINE", "IOPS", "P50-US", "CPU-US/IO", "IOPS/FIO", "P50/FIO", "CPU/FIO")
}

// rows prints a workload's medians, and the medians of the ratios to fio, the last peer, in the
// same round: what slows a round down slows both.
func rows(w workload, peers []peer, results [][]result) {
	base := results[len(results)-1]
	for i, p := range peers {
		m := median(results[i])
		r := ratios(results[i], base)
		fmt.Printf("%-20s %-9s %9.0f %9.1f %9.2f %8.2f %8.2f %8.2f\n", w, p.name(), m.iops,
			float64(m.p50)/1e3, float64(m.cpu)/1e3, r[0], r[1], r[2])
	}
}

// ratios are the medians of IOPS, p50 and CPU per I/O, each against the base of its round.
func ratios(rs, base []result) (out [3]float64) {
	for k, get := range [...]func(result) float64{
		func(r result) float64 { return r.iops },
		func(r result) float64 { return float64(r.p50) },
		func(r result) float64 { return float64(r.cpu) },
	} {
		v := make([]float64, len(rs))
		for i := range rs {
			v[i] = get(rs[i]) / max(get(base[i]), 1)
		}
		out[k] = middle(v)
	}
	return out
}
