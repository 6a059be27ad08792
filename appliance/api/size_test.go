package api

import "testing"

func TestParseSize(t *testing.T) {
	good := map[string]int64{
		"0": 0, "512": 512, "512B": 512, "1KiB": 1 << 10, "10GiB": 10 << 30, "2TiB": 2 << 40, "7EiB": 7 << 60,
	}
	for text, want := range good {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "10GB", "10 GiB", "1.5GiB", "8EiB", "1GiBGiB", "0x10", "10gib", "99999999999999999999"} {
		if n, err := ParseSize(text); err == nil {
			t.Errorf("%q gave %d", text, n)
		}
	}
}

func TestFormatSize(t *testing.T) {
	tests := map[int64]string{
		0: "0B", 511: "511B", 1024: "1KiB", 10 << 30: "10GiB", 1536 << 20: "1536MiB",
		1<<30 + 1: "1.0GiB", 123456789: "117.7MiB", 9223372036854775807: "8.0EiB",
	}
	for n, want := range tests {
		if got := FormatSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func FuzzSize(f *testing.F) {
	f.Add("10GiB")
	f.Add("7EiB")
	f.Add("1B")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("%q: %d", s, n)
		}
		if again, err := ParseSize(FormatSize(n)); err == nil && again != n {
			t.Fatalf("%q: %d prints as %s, which is %d", s, n, FormatSize(n), again)
		}
	})
}
