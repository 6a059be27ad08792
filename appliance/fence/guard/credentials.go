package guard

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
)

// Port is where guards answer on cluster.address.
const Port = 3346

// maxRevoked bounds the list of revoked certificates that a guard takes.
const maxRevoked = 1000

// Credentials are what a guard needs to know other nodes and to be known by them. Certificate, Key and CA are
// PEM; the key is PKCS #8.
type Credentials struct {
	Address              string // host:port to listen on
	Certificate, Key, CA []byte
	Revoked              []string // serial numbers, hexadecimal, lower case
}

// Validate tells what is wrong with c.
func (c *Credentials) Validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fmt.Errorf("guard: address %q: %w", c.Address, err)
	}
	if n := len(c.Revoked); n > maxRevoked {
		return fmt.Errorf("guard: %d certificates are revoked, and %d at most are taken: leave the expired ones out", n, maxRevoked)
	}
	_, err := c.identity()
	return err
}

// identity is Credentials parsed.
type identity struct {
	address string
	name    string // of this node
	cert    tls.Certificate
	ca      *x509.CertPool
	revoked map[string]bool
}

func (c *Credentials) identity() (*identity, error) {
	cert, err := tls.X509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, fmt.Errorf("guard: certificate: %w", err)
	}
	i := &identity{address: c.Address, name: cert.Leaf.Subject.CommonName, cert: cert, ca: x509.NewCertPool(), revoked: map[string]bool{}}
	if !i.ca.AppendCertsFromPEM(c.CA) {
		return nil, errors.New("guard: the CA's certificate is not one in PEM")
	}
	for _, serial := range c.Revoked {
		i.revoked[serial] = true
	}
	return i, nil
}

// serverTLS is for the other nodes; TLS 1.3, no resumption, so that each connection is looked at.
func (i *identity) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.cert}, SessionTicketsDisabled: true,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: i.ca, VerifyConnection: i.known,
	}
}

func (i *identity) known(c tls.ConnectionState) error {
	if len(c.PeerCertificates) == 0 || i.revoked[c.PeerCertificates[0].SerialNumber.Text(16)] {
		return errors.New("the certificate was revoked")
	}
	return nil
}

// clientTLS is for an earlier guard of this same node.
func (i *identity) clientTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.cert}, RootCAs: i.ca,
		InsecureSkipVerify: true, // the name counts and the address does not: verified below
		VerifyConnection: func(c tls.ConnectionState) error {
			if len(c.PeerCertificates) == 0 || c.PeerCertificates[0].Subject.CommonName != i.name {
				return errors.New("it is not a guard of this node")
			}
			_, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: i.ca})
			return err
		},
	}
}
