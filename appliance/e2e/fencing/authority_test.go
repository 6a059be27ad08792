package fencing

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lunar/appliance/fence/guard"
)

// authority is a cluster's CA.
type authority struct {
	t       *testing.T
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	dir     string
	serial  int64
	revoked string // serial number that the next credentials say is revoked
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key, a.cert, _ = a.make(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "CA"}})
	return a
}

func (a *authority) make(c *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.serial++
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.serial), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := c, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert, der
}

// issue makes a node's credentials, in a folder of their own.
func (a *authority) issue(node string) (folder string) {
	a.t.Helper()
	key, _, der := a.make(&x509.Certificate{
		Subject: pkix.Name{CommonName: node}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	folder = filepath.Join(a.dir, node+time.Now().Format("150405.000000000"))
	write := func(name, kind string, der []byte) error {
		return os.WriteFile(filepath.Join(folder, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	}
	err = errors.Join(os.Mkdir(folder, 0o700), write("cert", "CERTIFICATE", der), write("key", "PRIVATE KEY", private),
		write("ca", "CERTIFICATE", a.cert.Raw), os.WriteFile(filepath.Join(folder, "revoked"), []byte(a.revoked), 0o600))
	if err != nil {
		a.t.Fatal(err)
	}
	return folder
}

func credentials(folder, address string) (guard.Credentials, error) {
	c := guard.Credentials{Address: address}
	var errs [4]error
	var revoked []byte
	c.Certificate, errs[0] = os.ReadFile(filepath.Join(folder, "cert"))
	c.Key, errs[1] = os.ReadFile(filepath.Join(folder, "key"))
	c.CA, errs[2] = os.ReadFile(filepath.Join(folder, "ca"))
	revoked, errs[3] = os.ReadFile(filepath.Join(folder, "revoked"))
	if len(revoked) > 0 {
		c.Revoked = []string{string(revoked)}
	}
	return c, errors.Join(errs[:]...)
}

// client is how a node of this CA calls others.
func (a *authority) client(node string) *tls.Config {
	a.t.Helper()
	c, err := credentials(a.issue(node), "")
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(c.Certificate, c.Key)
	if err != nil {
		a.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: roots}
}
