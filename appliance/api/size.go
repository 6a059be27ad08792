package api

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// units are the binary prefixes of IEC 80000-13, smallest first.
var units = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// ParseSize reads "10GiB", "512MiB" or "1048576": an integer and a binary unit, bytes without one.
// Decimal units are refused, since nobody agrees on what 10GB means for a disk.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMGTPEiB")
	unit := s[len(digits):]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a size; write it as 10GiB", s)
	}
	if unit == "" {
		return n, nil
	}
	for i, u := range units {
		if u != unit {
			continue
		}
		if n > math.MaxInt64>>(10*i) {
			return 0, fmt.Errorf("%q is too large", s)
		}
		return n << (10 * i), nil
	}
	return 0, fmt.Errorf("%q has an unknown unit; use one of %s", s, strings.Join(units, ", "))
}

// FormatSize writes n bytes in the largest unit that divides it, if that takes four digits at most,
// or else rounded to one decimal.
func FormatSize(n int64) string {
	whole, i := n, 0
	for i < len(units)-1 && whole != 0 && whole%1024 == 0 {
		whole /= 1024
		i++
	}
	if whole < 10000 {
		return strconv.FormatInt(whole, 10) + units[i]
	}
	f := float64(whole)
	for i < len(units)-1 && f >= 1024 {
		f /= 1024
		i++
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + units[i]
}
