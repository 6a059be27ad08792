package api

import (
	"net/url"
	"strconv"
	"time"
)

// form reads the parameters of a call; err is about the first that cannot be read.
type form struct {
	values url.Values
	err    error
}

func (f *form) refuse(name, text, what string) {
	if f.err == nil {
		f.err = Errorf(Invalid, "%s=%q is not %s", name, text, what)
	}
}

// duration is 0 when the parameter is missing.
func (f *form) duration(name string) time.Duration {
	text := f.values.Get(name)
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		f.refuse(name, text, "a duration such as 10s")
	}
	return d
}

// number is 0 when the parameter is missing.
func (f *form) number(name string) int {
	text := f.values.Get(name)
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		f.refuse(name, text, "a number")
	}
	return n
}
