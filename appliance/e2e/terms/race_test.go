//go:build race

package terms

const raceEnabled = true // measured times mean little
