package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// revoked is the set of certificates that are out of use; it follows the database.
type revoked struct {
	mu      sync.Mutex // guards serials
	serials map[string]bool
}

func (r *revoked) set(serials []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.serials = make(map[string]bool, len(serials))
	for _, s := range serials {
		r.serials[s] = true
	}
}

func (r *revoked) has(cert *x509.Certificate) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.serials[serialOf(cert)]
}

func (r *revoked) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]string, 0, len(r.serials))
	for s := range r.serials {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// ServerTLS is for listeners that serve nodes of this cluster only: TLS 1.3, a client certificate of the
// cluster's CA is required and is looked up in the revocation list at every handshake, also of a
// resumed session. The peer's node name is the certificate's CN. ErrAlone: there is no cluster.
func (db *DB) ServerTLS() (*tls.Config, error) {
	s := db.self.Load()
	if s == nil {
		return nil, ErrAlone
	}
	return db.serverTLS(s, tls.RequireAnyClientCert), nil
}

func (db *DB) serverTLS(s *self, auth tls.ClientAuthType) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		ClientAuth:       auth, // verify does the rest, with better words than the library's
		ClientCAs:        pool(s.ca),
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate(), nil },
		VerifyConnection: func(c tls.ConnectionState) error { return db.verify(s, &c, "", x509.ExtKeyUsageClientAuth) },
	}
}

// ClientTLS is for connections to a node of this cluster, named, or any with "". The name in the
// certificate counts and the address does not, so a node may be reached by any of its addresses.
// ErrAlone: there is no cluster.
func (db *DB) ClientTLS(node string) (*tls.Config, error) {
	s := db.self.Load()
	if s == nil {
		return nil, ErrAlone
	}
	return db.clientTLS(s, node), nil
}

func (db *DB) clientTLS(s *self, node string) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		RootCAs:              pool(s.ca),
		InsecureSkipVerify:   true, // verify checks chain, name and revocation instead
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.certificate(), nil },
		VerifyConnection:     func(c tls.ConnectionState) error { return db.verify(s, &c, node, x509.ExtKeyUsageServerAuth) },
	}
}

func pool(ca *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca)
	return p
}

// verify checks the peer's certificate, if it showed one; who must show one is ClientAuth's matter.
func (db *DB) verify(s *self, c *tls.ConnectionState, node string, usage x509.ExtKeyUsage) error {
	if len(c.PeerCertificates) == 0 {
		return nil
	}
	cert := c.PeerCertificates[0]
	if err := verifyChain(cert, s.ca, usage, time.Now()); err != nil {
		return err
	}
	switch name := cert.Subject.CommonName; {
	case slices.Contains(cert.Subject.OrganizationalUnit, webUnit):
		return fmt.Errorf("%w: it is for browsers: %s", ErrCertificate, name)
	case db.revoked.has(cert):
		return fmt.Errorf("%w: node %s was evicted", ErrCertificate, name)
	case node != "" && node != name:
		return fmt.Errorf("%w: it names node %s, and %s was called", ErrCertificate, name, node)
	}
	return nil
}

func verifyChain(cert, ca *x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	_, err := cert.Verify(x509.VerifyOptions{Roots: pool(ca), KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: now})
	if err != nil {
		return explain(err, now)
	}
	return nil
}

// pinned is for a node that is not yet a member: it trusts who shows the CA of the token, and keeps
// that CA in found.
func pinned(t *token, found **x509.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the fingerprint is checked instead
		VerifyConnection: func(c tls.ConnectionState) error {
			ca, err := checkPin(c.PeerCertificates, t.ca)
			*found = ca
			return err
		},
	}
}

func checkPin(shown []*x509.Certificate, want fingerprint) (*x509.Certificate, error) {
	if len(shown) < 2 {
		return nil, errors.New("what answers there is not a member of a Lunar cluster")
	}
	ca := shown[1]
	if sum(ca) != want {
		return nil, fmt.Errorf("%w: the member there is of another cluster than the token", ErrToken)
	}
	return ca, verifyChain(shown[0], ca, x509.ExtKeyUsageServerAuth, time.Now())
}
