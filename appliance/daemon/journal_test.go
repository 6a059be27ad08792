package daemon

import (
	"errors"
	"log/slog"
	"maps"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
)

func TestJournalFields(t *testing.T) {
	var message string
	var level journal.Priority
	var fields map[string]string
	log := slog.New(&journalHandler{level: slog.LevelInfo, send: func(m string, p journal.Priority, f map[string]string) error {
		message, level, fields = m, p, f
		return nil
	}})
	log.Debug("not sent")
	if message != "" {
		t.Errorf("sent %q", message)
	}
	log = log.With("component", "etcd")
	log.Warn("volume state", "volume", "Volume1", "in-flight", 3, "empty", "", "error", errors.New("no"), slog.Group("login", "target", "iqn.t"))
	want := map[string]string{"COMPONENT": "etcd", "VOLUME": "Volume1", "IN_FLIGHT": "3", "ERROR": "no", "LOGIN_TARGET": "iqn.t"}
	if !maps.Equal(fields, want) || level != journal.PriWarning {
		t.Errorf("priority %d, %v, want %v", level, fields, want)
	}
	if text := "volume state component=etcd volume=Volume1 in-flight=3 error=no login_target=iqn.t"; message != text {
		t.Errorf("message %q, want %q", message, text)
	}
	log.WithGroup("g").Info("m", "message", 1, "_9", 2)
	if fields["G_MESSAGE"] != "1" || fields["G__9"] != "2" || fields["COMPONENT"] != "etcd" || level != journal.PriInfo {
		t.Errorf("%v", fields)
	}
	slog.New(log.Handler()).Info("m", "priority", 1, "_9", 2)
	if fields["LUNAR_PRIORITY"] != "1" || fields["LUNAR_"] != "2" || fields["G_MESSAGE"] != "" {
		t.Errorf("%v", fields)
	}
}
