package detector

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestProfileValidate(t *testing.T) {
	for _, p := range []Profile{Default(), Fast(), Profile{}.WithDefaults(), Profile{Period: MinPeriod, Missed: MinMissed}.WithDefaults(),
		Profile{Period: MaxPeriod, Missed: MaxMissed}.WithDefaults()} {
		if err := p.Validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for want, change := range map[string]func(*Profile){
		"period":          func(p *Profile) { p.Period = MinPeriod - 1 },
		"50ms to 1m0s":    func(p *Profile) { p.Period = MaxPeriod + 1 },
		"3 to 120":        func(p *Profile) { p.Missed = 2 },
		"between subnets": func(p *Profile) { p.MissedRouted = p.Missed - 1 },
		"every":           func(p *Profile) { p.Interval = p.Period + 1 },
	} {
		p := Default()
		change(&p)
		if err := p.Validate(); !errors.Is(err, ErrProfile) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", p, err, want)
		}
	}
	if _, err := New(Options{Profile: Default(), Tick: 2 * time.Second}); !errors.Is(err, ErrProfile) {
		t.Errorf("a tick longer than the period: %v", err)
	}
}

// TestThresholds holds the defaults to Windows Server 2016's.
func TestThresholds(t *testing.T) {
	if d := Default(); d.Threshold() != 10*time.Second || d.RoutedThreshold() != 20*time.Second || d.Leave() != 250*time.Millisecond {
		t.Errorf("default: %v, %v, %v", d.Threshold(), d.RoutedThreshold(), d.Leave())
	}
	if f := Fast(); f.Threshold() != 500*time.Millisecond || f.Leave() != 250*time.Millisecond {
		t.Errorf("fast: %v, %v", f.Threshold(), f.Leave())
	}
}
