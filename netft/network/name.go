package network

import (
	"cmp"
	"strings"
)

// compareNames orders names as people do: numbers in them by value, so Network2 is before Network10.
func compareNames(a, b string) int {
	restA, restB := a, b
	for restA != "" && restB != "" {
		wordA, numberA := chunk(&restA)
		wordB, numberB := chunk(&restB)
		if c := cmp.Or(strings.Compare(wordA, wordB), compareNumbers(numberA, numberB)); c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(len(restA), len(restB)), strings.Compare(a, b))
}

// chunk takes letters and the digits after them from the front of *s.
func chunk(s *string) (word, number string) {
	isDigit := func(r rune) bool { return r >= '0' && r <= '9' }
	rest := strings.TrimLeftFunc(*s, func(r rune) bool { return !isDigit(r) })
	word = (*s)[:len(*s)-len(rest)]
	*s = strings.TrimLeftFunc(rest, isDigit)
	return word, rest[:len(rest)-len(*s)]
}

// compareNumbers compares decimal digits of any length by value; none is less than zero.
func compareNumbers(a, b string) int {
	if a == "" || b == "" {
		return cmp.Compare(len(a), len(b))
	}
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}
