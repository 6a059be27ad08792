package nbd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"lunar/datapath/wire/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

// memory is an export in memory.
type memory struct {
	mu      sync.RWMutex
	data    []byte
	info    nbd.Info
	fail    atomic.Pointer[error]                               // what every call returns
	before  atomic.Pointer[func(context.Context, string) error] // called first, with the method's name
	running atomic.Int32
	flushes atomic.Int32
	fua     atomic.Int32
	closed  atomic.Int32

	blocking bool                          // it has no Carrier
	carried  atomic.Int32                  // transfers that its Carriers began
	gate     atomic.Pointer[chan struct{}] // they wait for that
}

func newMemory(size int) *memory { return &memory{data: make([]byte, size)} }

func (m *memory) begin(ctx context.Context, method string) error {
	m.running.Add(1)
	defer m.running.Add(-1)
	if f := m.before.Load(); f != nil {
		if err := (*f)(ctx, method); err != nil {
			return err
		}
	}
	if err := m.fail.Load(); err != nil {
		return *err
	}
	return nil
}

func (m *memory) Size() int64    { m.mu.RLock(); defer m.mu.RUnlock(); return int64(len(m.data)) }
func (m *memory) Info() nbd.Info { return m.info }
func (m *memory) Close() error   { m.closed.Add(1); return nil }

func (m *memory) Read(ctx context.Context, p []byte, off int64) error {
	if err := m.begin(ctx, "read"); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:])
	return nil
}

func (m *memory) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := m.begin(ctx, "write"); err != nil {
		return err
	}
	if fua {
		m.fua.Add(1)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	return nil
}

func (m *memory) Flush(ctx context.Context) error {
	m.flushes.Add(1)
	return m.begin(ctx, "flush")
}

func (m *memory) Trim(ctx context.Context, off, n int64) error {
	return m.WriteZeroes(ctx, off, n, nbd.ZeroOptions{})
}

func (m *memory) WriteZeroes(ctx context.Context, off, n int64, o nbd.ZeroOptions) error {
	if err := m.begin(ctx, "zero"); err != nil {
		return err
	}
	if o.Fast && o.NoHole {
		return unix.EOPNOTSUPP
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return nil
}

func (m *memory) Status(ctx context.Context, off, n int64, each func(nbd.Extent) bool) error {
	if err := m.begin(ctx, "status"); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	const unit = 64 << 10
	for end := off + n; off < end; {
		k := min(unit-off%unit, end-off)
		zero := len(bytes.Trim(m.data[off:off+k], "\x00")) == 0
		if !each(nbd.Extent{Len: k, Hole: zero, Zero: zero}) {
			break
		}
		off += k
	}
	return nil
}

// served is a running server.
type served struct {
	*nbd.Server
	addr string
}

func serve(t testing.TB, o nbd.Options) *served {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s, err := nbd.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		c, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		s.Stop(c)
		if err := <-done; !errors.Is(err, nbd.ErrStopped) {
			t.Error("Serve:", err)
		}
	})
	return &served{s, l.Addr().String()}
}

// always opens m, whatever the name.
func always(m *memory) func(context.Context, string, nbd.Peer) (nbd.Export, error) {
	return func(context.Context, string, nbd.Peer) (nbd.Export, error) { return m, nil }
}

func dial(t testing.TB, o nbd.ClientOptions) *nbd.Client {
	t.Helper()
	if o.Export == nil {
		o.Export = nbd.Plain("disk")
	}
	c, err := nbd.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return p
}

// pki makes a CA with a certificate for each name, below dir: ca.pem, NAME-cert.pem, NAME-key.pem, and
// folders with the names that QEMU and libnbd want.
type pki struct {
	dir string
	t   testing.TB
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{dir: t.TempDir(), t: t}
	key, ca := p.key(), &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	p.sign("ca", ca, ca, key, key)
	for i, name := range []string{"server", "client", "node1"} {
		own := p.key()
		p.sign(name, &x509.Certificate{SerialNumber: big.NewInt(int64(2 + i)), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, ca, own, key)
	}
	return p
}

func (p *pki) key() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	return k
}

func (p *pki) sign(name string, c, ca *x509.Certificate, key, caKey *ecdsa.PrivateKey) {
	der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
	if err != nil {
		p.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for file, b := range map[string][]byte{name + "-cert.pem": certPEM, name + "-key.pem": keyPEM} {
		if err := os.WriteFile(filepath.Join(p.dir, file), b, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	_ = os.Link(filepath.Join(p.dir, "ca-cert.pem"), filepath.Join(p.dir, "ca.pem"))
}

func (p *pki) config(name string) *tls.Config {
	cert, err := tls.LoadX509KeyPair(filepath.Join(p.dir, name+"-cert.pem"), filepath.Join(p.dir, name+"-key.pem"))
	if err != nil {
		p.t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(p.dir, "ca-cert.pem"))
	if err != nil {
		p.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
}

// proxy passes connections on, and breaks them when told to.
type proxy struct {
	l     net.Listener
	mu    sync.Mutex
	conns []net.Conn
	// seen wraps what flows to the client, if set.
	wg sync.WaitGroup
}

func newProxy(t testing.TB, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l}
	p.wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, a, b)
			p.mu.Unlock()
			for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
				p.wg.Go(func() {
					io.Copy(way[0], way[1])
					way[0].Close()
					way[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

// cut breaks every connection there is.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not reached: ", what)
		}
	}
}
