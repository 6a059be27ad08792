package daemon

import (
	"context"
	"log/slog"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// journalHandler sends records to systemd's journal with a field per attribute (VOLUME=, TARGET=, …),
// so that `journalctl VOLUME=Volume1` finds them. Every record has the fields that it begins with, such as NODE=.
type journalHandler struct {
	level  slog.Level
	send   func(message string, p journal.Priority, fields map[string]string) error
	unit   string            // template of volumes' units; empty: there are none
	prefix string            // of the groups, ends with '_'
	fields map[string]string // of WithAttrs; never changed
	words  string            // the same for people
}

// Enabled implements slog.Handler.
func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// Handle implements slog.Handler.
func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	all := h.with()
	r.Attrs(func(a slog.Attr) bool { all.add(a); return true })
	if volume := all.fields["VOLUME"]; volume != "" && h.unit != "" {
		all.fields["OBJECT_SYSTEMD_UNIT"] = unitOf(h.unit, volume) // so that it is in that unit's journal too
	}
	return h.send(r.Message+all.words, priority(r.Level), all.fields)
}

// WithAttrs implements slog.Handler.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := h.with()
	for _, a := range attrs {
		out.add(a)
	}
	return out
}

// WithGroup implements slog.Handler.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	out := h.with()
	out.prefix += name + "_"
	return out
}

// with is a copy whose fields may be changed.
func (h *journalHandler) with() *journalHandler {
	out := *h
	out.fields = make(map[string]string, len(h.fields)+8)
	for k, v := range h.fields {
		out.fields[k] = v
	}
	return &out
}

func (h *journalHandler) add(a slog.Attr) {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		inner := *h
		if a.Key != "" {
			inner.prefix += a.Key + "_"
		}
		for _, one := range value.Group() {
			inner.add(one)
		}
		h.words = inner.words
		return
	}
	text := value.String()
	if text == "" || a.Key == "" || a.Key == "epoch" && text == "0" {
		return
	}
	h.fields[fieldName(h.prefix+a.Key)] = text
	h.words += " " + h.prefix + a.Key + "=" + text
}

// fieldName makes a journal field's name: capitals, digits and '_', beginning with a letter
// (systemd.journal-fields(7)).
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
	if name = strings.TrimLeft(name, "_0123456789"); name == "" || name == "MESSAGE" || name == "PRIORITY" {
		name = "LUNAR_" + name
	}
	return name[:min(len(name), 64)]
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
