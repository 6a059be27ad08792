package daemon

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"lunar/appliance/api"
)

// volumeUnit is the template of the units that show volumes to systemd, and take them on and off line. The packaged unit
// of lunard sets it; a lunard that is run by hand touches nobody's units.
const volumeUnit = "LUNAR_VOLUME_UNIT"

// unitLimit bounds a call of systemd.
const unitLimit = 5 * time.Second

// volumeUnits has systemd start the unit of each volume that comes on line here. The units end by themselves.
type volumeUnits struct {
	template string // with an empty instance: lunar-volume@.service
	log      *slog.Logger
	start    func(ctx context.Context, unit string) error
	started  map[string]bool // by the volume's name, while it is on line
}

func newVolumeUnits(log *slog.Logger) *volumeUnits {
	return &volumeUnits{template: os.Getenv(volumeUnit), log: log, start: startUnit, started: map[string]bool{}}
}

// keepUnits works until ctx ends; it does nothing where no template is set.
func (u *volumeUnits) keepUnits(ctx context.Context, lines func() []api.VolumeLine) {
	if u.template == "" {
		return
	}
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		u.see(ctx, lines())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// see starts the units of those that are on line now and were not when it looked last. What systemd refuses is not asked
// for again: the volume serves all the same.
func (u *volumeUnits) see(ctx context.Context, lines []api.VolumeLine) {
	present := map[string]bool{}
	for i := range lines {
		l := &lines[i]
		if l.End != "" || l.State == api.StateAbsent && !u.started[l.Volume] {
			continue
		}
		present[l.Volume] = true
		if u.started[l.Volume] {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, unitLimit)
		if err := u.start(limited, unitOf(u.template, l.Volume)); err != nil {
			u.log.Warn("the unit of a volume was not started", "volume", l.Volume, "error", err)
		}
		cancel()
	}
	u.started = present
}

// unitOf names a volume's unit. Every volume's name is fit for an instance as it is.
func unitOf(template, volume string) string {
	return strings.Replace(template, "@.", "@"+volume+".", 1)
}

// startUnit asks systemd and does not wait for the job: the unit waits for lunard.
func startUnit(ctx context.Context, unit string) error {
	bus, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	_, err = bus.StartUnitContext(ctx, unit, "replace", nil)
	return err
}
