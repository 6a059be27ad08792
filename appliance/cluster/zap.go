package cluster

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapLogger hands etcd's log to slog, one level lower, since etcd tells of its routine at info and
// warn. last is called on a Fatal or Panic.
func zapLogger(log *slog.Logger, last *lastWord) *zap.Logger {
	core := slogCore{log.With("component", "etcd")}
	return zap.New(core, zap.WithFatalHook(last), zap.WithPanicHook(last))
}

// lastWord is what follows etcd's Fatal and Panic. While the member starts it panics, which start
// turns into an error. Later it ends only the goroutine: the database answers no more through this
// member then, but the data path, which does not need it, goes on.
type lastWord struct {
	running atomic.Bool // a Fatal can no more be turned into an error by who started the member
	once    sync.Once
	died    chan struct{} // closed at the first one while running
}

func newLastWord() *lastWord { return &lastWord{died: make(chan struct{})} }

// OnWrite implements zapcore.CheckWriteHook.
func (w *lastWord) OnWrite(e *zapcore.CheckedEntry, _ []zapcore.Field) {
	if w.running.Load() {
		w.once.Do(func() { close(w.died) })
		runtime.Goexit()
	}
	panic(e.Message)
}

// slogCore is a zapcore.Core over slog.
type slogCore struct{ log *slog.Logger }

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.DPanicLevel:
		return slog.LevelError
	case l >= zapcore.ErrorLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

// Enabled implements zapcore.Core.
func (c slogCore) Enabled(l zapcore.Level) bool {
	return c.log.Enabled(context.Background(), slogLevel(l))
}

// With implements zapcore.Core.
func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.log.With(attributes(fields)...)}
}

// Check implements zapcore.Core.
func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.Log(context.Background(), slogLevel(e.Level), e.Message, attributes(fields)...)
	return nil
}

// Sync implements zapcore.Core.
func (slogCore) Sync() error { return nil }

func attributes(fields []zapcore.Field) []any {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	out := make([]any, 0, len(m.Fields))
	for k, v := range m.Fields {
		out = append(out, slog.Any(k, v))
	}
	return out
}
