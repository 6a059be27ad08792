package slot

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The variables of the loader's environment block. Others in it are kept.
const (
	varDefault = "lunar_default" // the slot that is booted; a slot's name
	varTry     = "lunar_try"     // the slot on trial, empty for none
	varLeft    = "lunar_left"    // how often the loader still boots that one
	varFailed  = "lunar_failed"  // the slot whose trial was given up
	varVersion = "lunar_"        // and a slot's name: its version, empty when it holds nothing whole
)

// The environment block of GRUB: its size, and the part of it that is written at once.
const (
	blockSize  = 1024
	sectorSize = 512
	blockHead  = "# GRUB Environment Block\n"
)

// ErrEnvironment means that the loader's environment block is damaged.
var ErrEnvironment = errors.New("the loader's environment block is damaged")

// environment is the loader's variables in their order.
type environment struct{ names, values []string }

// parseEnvironment reads a block of blockSize bytes.
func parseEnvironment(block []byte) (*environment, error) {
	if len(block) != blockSize || !bytes.HasPrefix(block, []byte(blockHead)) {
		return nil, fmt.Errorf("%w: it does not begin with %q", ErrEnvironment, strings.TrimSpace(blockHead))
	}
	e := &environment{}
	for rest := block[len(blockHead):]; len(rest) > 0 && rest[0] != '#'; {
		name, value, length := parseVariable(rest)
		if length == 0 {
			return nil, fmt.Errorf("%w: byte %d", ErrEnvironment, blockSize-len(rest))
		}
		e.set(name, value)
		rest = rest[length:]
	}
	return e, nil
}

// parseVariable reads NAME=VALUE and a line's end; a backslash takes the next byte as it is. The length is 0 for anything else.
func parseVariable(line []byte) (name, value string, length int) {
	at := bytes.IndexByte(line, '=')
	if at <= 0 || bytes.ContainsAny(line[:at], "\n#\x00") {
		return "", "", 0
	}
	var text []byte
	for i := at + 1; i < len(line); i++ {
		switch {
		case line[i] == '\n':
			return string(line[:at]), string(text), i + 1
		case line[i] == '\\' && i+1 < len(line):
			i++
		}
		text = append(text, line[i])
	}
	return "", "", 0
}

var escape = strings.NewReplacer("\\", "\\\\", "\n", "\\\n")

// block writes the variables into a block. They have to fit into its first sector.
func (e *environment) block() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(blockHead)
	for i, name := range e.names {
		b.WriteString(name + "=" + escape.Replace(e.values[i]) + "\n")
	}
	if b.Len() > sectorSize {
		return nil, fmt.Errorf("the loader's variables take %d bytes, %d is the most: shorten lunar_append", b.Len(), sectorSize)
	}
	return append(b.Bytes(), bytes.Repeat([]byte("#"), blockSize-b.Len())...), nil
}

func (e *environment) get(name string) string {
	for i, n := range e.names {
		if n == name {
			return e.values[i]
		}
	}
	return ""
}

func (e *environment) set(name, value string) {
	for i, n := range e.names {
		if n == name {
			e.values[i] = value
			return
		}
	}
	e.names, e.values = append(e.names, name), append(e.values, value)
}

// left is how many boots the trial has; a count that cannot be read is none, as for the loader.
func (e *environment) left() int {
	n, err := strconv.Atoi(e.get(varLeft))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// trial puts a slot on trial; the empty name ends one.
func (e *environment) trial(name string, left int) {
	e.set(varTry, name)
	e.set(varLeft, strconv.Itoa(left))
}

func (e *environment) version(slot string) string { return e.get(varVersion + slot) }

func (e *environment) setVersion(slot, version string) { e.set(varVersion+slot, version) }
