package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// The session's times. A renewal that is not answered within renewTry is tried anew beside the first: it may
// have gone to a leader that has died.
const (
	DefaultTTL   = 2 * time.Second
	MinTTL       = time.Second // needs the database's fast profile; the default profile raises it to 2 s
	MaxTTL       = 60 * time.Second
	renewTry     = 200 * time.Millisecond
	renewPause   = 20 * time.Millisecond // after a renewal that failed
	renewsPerTTL = 6
	closeTimeout = time.Second
)

// ErrSessionLost says that this node's session ended: whatever it held in the cluster is others' now.
var ErrSessionLost = errors.New("the node's session with the cluster is lost")

// Presence is what a node says of itself while its session lasts. Its Paths must not be changed.
type Presence struct {
	Node        string          `json:"node"`
	Address     string          `json:"address"`
	Portals     []string        `json:"portals,omitempty"` // host:port where its targets are reached
	Incarnation uint64          `json:"incarnation"`       // rises with every session of the node
	TTL         time.Duration   `json:"ttl"`
	Paths       map[string]bool `json:"paths,omitempty"`    // volume ID → its LUN is reached; missing: unknown here
	Stopping    bool            `json:"stopping,omitempty"` // it hands over what it has, and ends
	Draining    bool            `json:"-"`                  // by order, see Coordinators.Drain
	Coordinates int             `json:"-"`                  // volumes coordinated, counted by View
	Session     int64           `json:"-"`                  // revision that made the session
}

// SessionOptions for DB.StartSession. The callbacks are called one at a time, from the session's
// goroutine or from StartSession, and must not block: renewals wait for them.
type SessionOptions struct {
	Address string        // where the other nodes reach this one
	Portals []string      // host:port where initiators reach its targets
	TTL     time.Duration // whole seconds from MinTTL; 0: DefaultTTL
	Log     *slog.Logger

	Established func(incarnation uint64)
	Renewed     func(deadline int64) // see Deadline; 0 when the session is lost or closed
	Lost        func(incarnation uint64, reason error)
}

// Validate checks the options and fills in defaults.
func (o *SessionOptions) Validate() error {
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.Log == nil || o.TTL < MinTTL || o.TTL > MaxTTL || o.TTL%time.Second != 0 {
		return fmt.Errorf("cluster: SessionOptions need Log, and a TTL in whole seconds from %v to %v", MinTTL, MaxTTL)
	}
	if o.Established == nil {
		o.Established = func(uint64) {}
	}
	if o.Renewed == nil {
		o.Renewed = func(int64) {}
	}
	if o.Lost == nil {
		o.Lost = func(uint64, error) {}
	}
	return nil
}

// Session keeps this node present in the cluster by renewing a record (see renewal), so that it
// knows until when the cluster waits for it. A session that is lost is established anew, under a new
// incarnation, until Close.
type Session struct {
	db       *DB
	options  SessionOptions
	deadline atomic.Int64
	wake     chan struct{} // facts changed
	cancel   context.CancelFunc
	ended    chan struct{}

	mu       sync.Mutex      // guards what follows
	paths    map[string]bool // copied on change
	stopping bool
	dirty    bool
	now      *life
}

// life is one incarnation of a session.
type life struct {
	incarnation uint64
	lease       clientv3.LeaseID
	revision    int64 // CreateRevision of the session's key
	ttl         time.Duration
	before      record[renewal] // what the incarnation before left behind
	gone        chan struct{}   // closed when it is lost
	asked       chan string     // to end it, and why; room for one
	until       int64           // its deadline, when it is lost
}

func (l *life) end(reason string) {
	select {
	case l.asked <- reason:
	default:
	}
}

// Boottime is CLOCK_BOOTTIME in nanoseconds: it counts suspends and no clock steps.
func Boottime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("CLOCK_BOOTTIME: %v", err)) // no Linux that runs Go lacks it
	}
	return ts.Nano()
}

// StartSession makes this node present and keeps it so until Close. ErrUnavailable: the database did
// not answer before ctx ended.
func (db *DB) StartSession(ctx context.Context, o SessionOptions) (*Session, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := &Session{db: db, options: o, wake: make(chan struct{}, 1), ended: make(chan struct{}), paths: map[string]bool{}}
	if err := s.establish(ctx, nil); err != nil {
		return nil, fmt.Errorf("cluster: start session: %w", err)
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go s.run(ctx)
	return s, nil
}

// Close ends the session at once, so that others need not wait for the lease. The caller has left
// every volume. Seats that are still held count as those of a node that has died.
func (s *Session) Close() {
	s.cancel()
	<-s.ended
}

// Renew ends the present incarnation and begins another, as after a loss: for a node that finds that
// it was fenced. Lost and Established tell when.
func (s *Session) Renew(reason string) {
	if l := s.current(); l != nil {
		l.end(reason)
	}
}

// Deadline is the CLOCK_BOOTTIME in nanoseconds until which this node may act as the session's
// holder: the send time of the last confirmed renewal plus TTL less 1 %. 0: no session.
func (s *Session) Deadline() int64 { return s.deadline.Load() }

// Incarnation is the number of the present session, 0 while there is none.
func (s *Session) Incarnation() uint64 {
	if l := s.current(); l != nil {
		return l.incarnation
	}
	return 0
}

// SetPath publishes whether this node reaches the volume's LUN. It returns before others know.
func (s *Session) SetPath(volumeID string, reached bool) {
	s.setPaths(func(paths map[string]bool) { paths[volumeID] = reached })
}

// ForgetPath withdraws what SetPath said: the volume is no more, or not this node's.
func (s *Session) ForgetPath(volumeID string) {
	s.setPaths(func(paths map[string]bool) { delete(paths, volumeID) })
}

func (s *Session) setPaths(change func(map[string]bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	paths := maps.Clone(s.paths)
	change(paths)
	if maps.Equal(paths, s.paths) {
		return
	}
	s.paths, s.dirty = paths, true
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Session) current() *life {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *Session) run(ctx context.Context) {
	defer close(s.ended)
	for {
		l := s.current()
		err := s.keep(ctx, l)
		s.lose(l, err)
		if ctx.Err() != nil {
			s.leave(l) //nolint:contextcheck // its context has ended
			return
		}
		if err := s.establish(ctx, l); err != nil {
			if ctx.Err() == nil {
				s.options.Log.Error("no session with the cluster is begun any more: restart lunard when that is mended", "reason", err)
			}
			return
		}
	}
}

func (s *Session) lose(l *life, reason error) {
	l.until = s.deadline.Swap(0)
	s.mu.Lock()
	s.now = nil
	s.mu.Unlock()
	close(l.gone)
	s.options.Renewed(0)
	if !errors.Is(reason, context.Canceled) {
		s.options.Log.Warn("cluster session lost", "incarnation", l.incarnation, "reason", reason)
		s.options.Lost(l.incarnation, reason)
	}
}

// leave revokes the lease; if that fails it ends by itself.
func (s *Session) leave(l *life) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := s.db.revoke(ctx, l.lease); err != nil {
		s.options.Log.Warn("cluster session: the lease ends by itself", "after", l.ttl, "reason", err)
	}
}

// keep renews until the session is lost or ctx ends, and returns why.
func (s *Session) keep(ctx context.Context, l *life) error {
	r, ctx := s.renewals(ctx, l)
	defer r.wait()
	taken := s.db.client.Watch(ctx, sessionKeys+s.db.node, clientv3.WithRev(l.revision+1), clientv3.WithFilterPut())
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var pause time.Duration
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case reason := <-l.asked:
			return fmt.Errorf("%w: %s", ErrSessionLost, reason)
		case resp, ok := <-taken:
			if len(resp.Events) > 0 {
				return fmt.Errorf("%w: another node ended it", ErrSessionLost)
			}
			if !ok {
				taken = nil // the renewals tell it too, a little later
			}
			continue
		case <-s.wake:
			if err := s.publish(ctx, l); err != nil {
				return err
			}
			continue
		case a := <-r.answers:
			pause, err = r.heard(ctx, a)
			s.rewake()
		case <-timer.C:
			pause, err = r.begin(ctx)
		}
		if err != nil {
			return err
		}
		timer.Reset(pause)
	}
}

func (s *Session) confirm(sent int64, ttl time.Duration) {
	deadline := max(s.deadline.Load(), sent+int64(ttl-ttl/100))
	s.deadline.Store(deadline)
	s.options.Renewed(deadline)
}

// rewake has facts published again that a failed try left behind.
func (s *Session) rewake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// publish tries once to write the facts; a failure is tried again after the next renewal.
func (s *Session) publish(ctx context.Context, l *life) error {
	s.mu.Lock()
	if !s.dirty {
		s.mu.Unlock()
		return nil
	}
	s.dirty = false
	value := s.presence(l)
	s.mu.Unlock()

	key := sessionKeys + s.db.node
	op, err := putWith(key, &value, clientv3.WithIgnoreLease())
	if err != nil {
		return err
	}
	try, cancel := context.WithTimeout(ctx, renewTry)
	defer cancel()
	ok, err := s.db.commit(try, []clientv3.Cmp{createdAt(key, l.revision)}, op)
	if err != nil {
		s.mu.Lock()
		s.dirty = true
		s.mu.Unlock()
		return nil // tried again after the next renewal
	}
	if !ok {
		return fmt.Errorf("%w: another node ended it", ErrSessionLost)
	}
	return nil
}

// presence needs s.mu.
func (s *Session) presence(l *life) Presence {
	return Presence{Node: s.db.node, Address: s.options.Address, Portals: s.options.Portals, Incarnation: l.incarnation, TTL: l.ttl, Paths: s.paths, Stopping: s.stopping}
}

// establish begins a new incarnation; it tries until ctx ends. old is this process's last one.
func (s *Session) establish(ctx context.Context, old *life) error {
	return s.db.try(ctx, func(ctx context.Context) error {
		l, sent, err := s.begin(ctx, old)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.now = l
		s.mu.Unlock()
		s.confirm(sent, l.ttl)
		s.options.Log.Info("cluster session established", "incarnation", l.incarnation, "ttl", l.ttl)
		s.options.Established(l.incarnation)
		return nil
	})
}

// begin ends what is left of an older session of this node, and makes a new one.
func (s *Session) begin(ctx context.Context, old *life) (*life, int64, error) {
	counter, err := s.db.incarnation(ctx)
	if err != nil {
		return nil, 0, err
	}
	if err := s.db.ledger.counted(counter.value); err != nil {
		return nil, 0, err
	}
	if err := s.endOlder(ctx, old); err != nil {
		return nil, 0, err
	}
	sent := Boottime()
	grant, err := s.db.client.Grant(ctx, int64(s.options.TTL/time.Second))
	if err != nil {
		return nil, 0, unavailable(err)
	}
	l := &life{incarnation: counter.value + 1, lease: grant.ID, ttl: min(time.Duration(grant.TTL)*time.Second, MaxTTL), gone: make(chan struct{}), asked: make(chan string, 1)}
	if l.before, err = s.db.lastRenewal(ctx, s.db.node); err != nil {
		return nil, 0, err
	}
	if l.revision, err = s.enter(ctx, l, counter); err != nil {
		return nil, 0, err
	}
	return l, sent, s.db.ledger.had(l.incarnation)
}

// enter writes the session's key under its lease, and the counter of incarnations.
func (s *Session) enter(ctx context.Context, l *life, counter record[uint64]) (int64, error) {
	s.mu.Lock()
	value := s.presence(l)
	s.dirty = false
	s.mu.Unlock()
	key := sessionKeys + s.db.node
	session, err := putWith(key, &value, clientv3.WithLease(l.lease))
	if err != nil {
		return 0, err
	}
	count, err := put(counter.key, l.incarnation)
	if err != nil {
		return 0, err
	}
	first, err := put(l.before.key, l.renewal())
	if err != nil {
		return 0, err
	}
	resp, err := s.db.client.Txn(ctx).If(absent(key), counter.unchanged(), l.before.unchanged()).Then(session, count, first).Commit()
	if err != nil {
		return 0, unavailable(err)
	}
	if !resp.Succeeded {
		return 0, errAgain
	}
	return resp.Header.Revision, nil
}

// endOlder ends the lease of a session which this node left behind. One whose deadline may be still to
// come is marked so, for those who fence it.
func (s *Session) endOlder(ctx context.Context, old *life) error {
	if old != nil && Boottime() >= old.until {
		if err := s.db.revokeOnce(ctx, old.lease); err != nil {
			return err
		}
	}
	older, err := s.db.session(ctx, s.db.node)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.db.end(ctx, older, "the node started anew")
}

// incarnation reads this node's counter.
func (db *DB) incarnation(ctx context.Context) (record[uint64], error) {
	r, err := get[uint64](ctx, db, incarnationKeys+db.node)
	if errors.Is(err, ErrNotFound) {
		return record[uint64]{key: incarnationKeys + db.node}, nil
	}
	return r, err
}
