package guard

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Nodes speak to guards in lines of text, one each way:
//
//	end INCARNATION REASON   →  ended FIRST LATEST WORDS   or   refused WORDS
//	yield                    →  the same; only from the guard of a later daemon of the same node
//
// FIRST to LATEST are the incarnations of the node that have ended, with all their writes.
const (
	verbEnd     = "end"
	verbYield   = "yield"
	verbEnded   = "ended"
	verbRefused = "refused"
)

// Bounds of a line, bytes.
const (
	maxLine   = 512
	maxReason = 256
)

var errLine = errors.New("malformed line")

// order is a request of another node.
type order struct {
	verb        string
	incarnation uint64 // with verbEnd
	reason      string
}

func (o order) line() string {
	if o.verb == verbYield {
		return verbYield + "\n"
	}
	return fmt.Sprintf("%s %d %s\n", o.verb, o.incarnation, printable(o.reason, maxReason))
}

// parseOrder wants a line without its end.
func parseOrder(line string) (order, error) {
	if line == verbYield {
		return order{verb: verbYield}, nil
	}
	verb, rest, _ := strings.Cut(line, " ")
	number, reason, found := strings.Cut(rest, " ")
	if verb != verbEnd || !found {
		return order{}, fmt.Errorf("%w: not `end INCARNATION REASON`", errLine)
	}
	incarnation, err := parseNumber(number)
	if err != nil {
		return order{}, err
	}
	if reason == "" || len(reason) > maxReason || reason != printable(reason, maxReason) {
		return order{}, fmt.Errorf("%w: the reason must be printable, %d bytes at most", errLine, maxReason)
	}
	return order{verbEnd, incarnation, reason}, nil
}

// parseNumber takes one form of a number only.
func parseNumber(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != text {
		return 0, fmt.Errorf("%w: %.24q is no incarnation", errLine, text)
	}
	return n, nil
}

// answer tells of the end of incarnations, or why it is not proven.
type answer struct {
	first, latest uint64 // both 0: refused
	words         string
}

func (a answer) line() string {
	if a.latest == 0 {
		return verbRefused + " " + printable(a.words, maxReason) + "\n"
	}
	return fmt.Sprintf("%s %d %d %s\n", verbEnded, a.first, a.latest, printable(a.words, maxReason))
}

func parseAnswer(line string) (answer, error) {
	verb, rest, _ := strings.Cut(line, " ")
	if verb == verbRefused {
		return answer{words: printable(rest, maxReason)}, nil
	}
	part := strings.SplitN(rest, " ", 3)
	if verb != verbEnded || len(part) != 3 {
		return answer{}, fmt.Errorf("%w: %.24q is no answer", errLine, line)
	}
	first, err := parseNumber(part[0])
	if err != nil {
		return answer{}, err
	}
	latest, err := parseNumber(part[1])
	if err == nil && latest < first {
		err = fmt.Errorf("%w: %d comes before %d", errLine, latest, first)
	}
	return answer{first, latest, printable(part[2], maxReason)}, err
}

// readLine reads one line, without its end.
func readLine(r io.Reader) (string, error) {
	line, err := bufio.NewReaderSize(io.LimitReader(r, maxLine), maxLine).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%w: no end within %d bytes: %w", errLine, maxLine, err)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// printable makes text fit for a line and a log: limit bytes at most, nothing unprintable, never empty.
func printable(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
	for len(text) > limit {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	if text == "" {
		return "?"
	}
	return text
}
