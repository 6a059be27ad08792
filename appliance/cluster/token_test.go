package cluster

import (
	"strings"
	"testing"
)

func testToken() token {
	t := newToken("0123456789abcdef", fingerprint{1, 2, 3}, "2001:db8::1")
	t.secret = [16]byte{7, 7, 7}
	return t
}

func TestTokenRoundTrip(t *testing.T) {
	want := testToken()
	got, err := parseToken(" \n" + want.String() + "\t\n")
	must(t, err)
	if got != want {
		t.Fatalf("%+v, want %+v", got, want)
	}
	other := want
	other.secret[15]++
	if want.id() == other.id() || len(want.id()) != 64 {
		t.Fatal(want.id())
	}
}

func TestTokenEveryLetterCounts(t *testing.T) {
	text := newTokenText()
	for i := range text {
		c := byte('A')
		if text[i] == c {
			c = 'B'
		}
		_, err := parseToken(text[:i] + string(c) + text[i+1:])
		wantErr(t, err, ErrToken)
		_, err = parseToken(text[:i])
		wantErr(t, err, ErrToken)
	}
}

func newTokenText() string {
	t := testToken()
	return t.String()
}

func FuzzToken(f *testing.F) {
	f.Add(newTokenText())
	f.Add("lunar-")
	f.Add("lunar-AQ")
	f.Add(strings.Repeat("lunar-", 200))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := parseToken(text)
		if err != nil {
			wantErr(t, err, ErrToken)
			return
		}
		again, err := parseToken(token.String())
		if err != nil || again != token {
			t.Fatalf("%+v, %+v, %v", token, again, err)
		}
	})
}
