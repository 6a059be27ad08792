package guard

import (
	"strings"
	"testing"
)

func FuzzOrder(f *testing.F) {
	for _, s := range []string{"end 7 no renewal", "yield", "end 0 x", "end 07 x", "end +7 x", "end 7", "end 7 ", "yield ", "END 7 x", "end 18446744073709551616 x",
		"end 7 \x00", "end 7 \xff\xfe", "end 7 " + strings.Repeat("ä", 200), ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOrder(s)
		if err != nil {
			if o != (order{}) {
				t.Fatalf("%+v beside %v", o, err)
			}
			return
		}
		if o.line() != s+"\n" {
			t.Fatalf("%q was read as %q", s, o.line())
		}
		if o.verb == verbEnd && o.incarnation == 0 || len(s) >= maxLine {
			t.Fatalf("%+v", o)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"ended 1 2 words", "ended 2 1 words", "ended 1 2", "refused why", "refused", "ended 0 0 x", "ended 1 2 \x1b[31m", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAnswer(s)
		if err != nil {
			return
		}
		if a.latest != 0 && (a.first == 0 || a.first > a.latest || !strings.HasPrefix(s, "ended ")) {
			t.Fatalf("%q proves %+v", s, a)
		}
		again, err := parseAnswer(strings.TrimSuffix(a.line(), "\n"))
		if err != nil || again != a || len(a.line()) > maxLine {
			t.Fatalf("%+v became %+v: %v", a, again, err)
		}
	})
}

func TestReadsLines(t *testing.T) {
	if line, err := readLine(strings.NewReader("yield\nmore")); err != nil || line != "yield" {
		t.Fatal(line, err)
	}
	for _, s := range []string{"", "yield", strings.Repeat("x", maxLine) + "\n"} {
		if line, err := readLine(strings.NewReader(s)); err == nil {
			t.Errorf("%.20q is a line: %.20q", s, line)
		}
	}
	long := order{verbEnd, 1<<64 - 1, printable(strings.Repeat("ä\n", maxLine), maxReason)}
	if o, err := parseOrder(strings.TrimSuffix(long.line(), "\n")); err != nil || o != long {
		t.Fatal(o, err)
	}
}
