package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// greet dials with a configuration and reads one byte, since a TLS 1.3 server's refusal comes after
// the client's handshake.
func greet(address string, cfg *tls.Config) error {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 2 * time.Second}, Config: cfg}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

// listenTLS accepts with a configuration and sends one byte to whom it lets in.
func listenTLS(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte{1})
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return l.Addr().String()
}

func configs(t *testing.T, db *DB, node string) (server, client *tls.Config) {
	t.Helper()
	server, err := db.ServerTLS()
	must(t, err)
	client, err = db.ClientTLS(node)
	must(t, err)
	return server, client
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	nodes, x := newCluster(t, "a", "b"), newCluster(t, "x")[0]
	a, b := nodes[0], nodes[1]
	server, _ := configs(t, a, "")
	at := listenTLS(t, server)
	_, good := configs(t, b, "a")
	_, misnamed := configs(t, b, "x")
	_, foreign := configs(t, x, "")
	foreignServer, _ := configs(t, x, "")
	must(t, greet(at, good))
	wantErr(t, greet(at, misnamed), ErrCertificate)
	wantErr(t, greet(at, foreign), ErrCertificate)
	wantErr(t, greet(listenTLS(t, foreignServer), good), ErrCertificate)

	// A client that trusts anyone, with the other cluster's certificate or none, gets in nowhere.
	blind := foreign.Clone()
	blind.VerifyConnection = nil
	blind.NextProtos = []string{"h2"}
	nobody := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}
	for _, port := range []uint16{clientPort, peerPort} {
		for _, cfg := range []*tls.Config{blind, nobody} {
			err := greet(hostPort(a.options.Config.Address, port), cfg)
			var alert tls.AlertError
			if !errors.As(err, &alert) && !strings.Contains(err.Error(), "remote error: tls") {
				t.Errorf("port %d: %v", port, err)
			}
		}
	}
	if err := greet(at, blind); err == nil || !strings.Contains(err.Error(), "remote error: tls") {
		t.Errorf("with a foreign certificate: %v", err)
	}
	if err := greet(at, nobody); err == nil {
		t.Error("without a certificate")
	}

	old := b.self.Load().certificate()
	must(t, a.Evict(t.Context(), "b"))
	for range 50 {
		if a.revoked.has(old.Leaf) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	evicted := good.Clone()
	evicted.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return old, nil }
	evicted.NextProtos = []string{"h2"}
	for _, where := range []string{at, hostPort(a.options.Config.Address, clientPort), hostPort(a.options.Config.Address, peerPort)} {
		if err := greet(where, evicted); err == nil || isTimeout(err) {
			t.Errorf("%s lets an evicted node in: %v", where, err)
		}
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// TestClockJumps says what a wrong clock does: up to a day back nothing, beyond that a clear refusal.
func TestClockJumps(t *testing.T) {
	now := time.Now()
	ca, err := newAuthority("0123456789abcdef", now)
	must(t, err)
	cert, err := ca.issue("n", "192.0.2.1", newKey().Public(), now)
	must(t, err)
	for _, ahead := range []time.Duration{-23 * time.Hour, 0, nodeLifetime - time.Hour} {
		must(t, verifyChain(cert, ca.cert, x509.ExtKeyUsageServerAuth, now.Add(ahead)))
	}
	for _, ahead := range []time.Duration{-25 * time.Hour, nodeLifetime + time.Hour} {
		err := verifyChain(cert, ca.cert, x509.ExtKeyUsageServerAuth, now.Add(ahead))
		wantErr(t, err, ErrCertificate)
		if !strings.Contains(err.Error(), "set the clocks right") {
			t.Fatal(err)
		}
	}
	other, err := newAuthority("0123456789abcdef", now)
	must(t, err)
	wantErr(t, verifyChain(cert, other.cert, x509.ExtKeyUsageServerAuth, now), ErrCertificate)
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	a := newCluster(t, "a")[0]
	s := a.self.Load()
	before := s.certificate().Leaf
	r, err := a.clusterRecord(t.Context())
	must(t, err)
	ca, err := a.authority(&r.value)
	must(t, err)
	ending, err := ca.issue("a", s.identity().Address, s.key.Public(), time.Now().Add(-nodeLifetime+renewBefore-time.Hour))
	must(t, err)
	must(t, s.setCert(ending))
	a.kick()
	for range 50 {
		if s.left(time.Now()) > renewBefore {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	m, err := a.Member(t.Context(), "a")
	must(t, err)
	if s.left(time.Now()) < renewBefore || len(m.Serials) != 2 || m.Serials[0] != serialOf(before) {
		t.Fatalf("left %v, serials %v", s.left(time.Now()), m.Serials)
	}
}
