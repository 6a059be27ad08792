package config

import (
	"bytes"
	"errors"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Parse decodes data over the defaults and validates the result; file is for the errors only.
func Parse(file string, data []byte) (Config, error) {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return Config{}, &Error{
			File: file, Line: 1 + bytes.Count(data[:i], []byte("\n")),
			Problem: "holds a zero byte: the file is damaged", Remedy: "restore it, or remove it to run with the defaults",
		}
	}
	c := Default()
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Config{}, decodeError(file, err)
	}
	if err := c.Validate(); err != nil {
		err.File = file
		err.Line = lineOf(data, err.Key)
		return Config{}, err
	}
	return c, nil
}

func decodeError(file string, err error) *Error {
	e := &Error{File: file, Problem: "cannot be parsed", Remedy: "mend the line; `lunard --check --config FILE` tests it", Err: err}
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		first := &strict.Errors[0]
		e.Line, _ = first.Position()
		e.Key = strings.Join(first.Key(), ".")
		e.Problem, e.Remedy, e.Err = "unknown key", "check its spelling and its [table], or remove it", nil
		return e
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		e.Line, _ = de.Position()
		e.Key = strings.Join(de.Key(), ".")
		e.Err = errors.New(strings.TrimPrefix(de.Error(), "toml: "))
	}
	return e
}

// lineOf finds the line that sets a dotted key, 0 if none does. Only data that decoded may be given.
func lineOf(data []byte, key string) int {
	var p unstable.Parser
	p.Reset(data)
	table := ""
	for p.NextExpression() {
		node := p.Expression()
		name, at := keyOf(node)
		switch {
		case node.Kind == unstable.Table:
			table = name + "."
		case table+name == key:
			return 1 + bytes.Count(data[:at], []byte("\n"))
		}
	}
	return 0
}

// keyOf joins the parts of an expression's key and gives the offset at which it begins.
func keyOf(node *unstable.Node) (string, uint32) {
	var parts []string
	var at uint32
	for it := node.Key(); it.Next(); {
		if len(parts) == 0 {
			at = it.Node().Raw.Offset
		}
		parts = append(parts, string(it.Node().Data))
	}
	return strings.Join(parts, "."), at
}
