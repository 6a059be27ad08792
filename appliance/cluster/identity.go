package cluster

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The files of a node that is in a cluster, in the folder "cluster" of its state directory. The
// folder appears and goes as a whole.
const (
	identityDir  = "cluster"
	identityFile = "cluster.json"
	caFile       = "ca.pem"
	caKeyFile    = "ca.key" // only where the cluster was made or restored
	certFile     = "node.pem"
	keyFile      = "node.key"
	crlFile      = "revoked.crl"
	secretFile   = "secret.key"
)

// membership is what a node knows of its cluster without the database.
type membership struct {
	ID       string   `json:"id"` // of the cluster, 16 hex digits
	Node     string   `json:"node"`
	Number   uint16   `json:"number"`
	Address  string   `json:"address"`
	Family   Family   `json:"family,omitempty"`
	Role     string   `json:"role"`     // config.RoleNode or RoleWitness
	Voter    bool     `json:"voter"`    // the database's files here are a member of the cluster
	Peers    []string `json:"peers"`    // client URLs of the voters, as last seen
	Revoked  []string `json:"revoked"`  // serial numbers, as last seen
	External bool     `json:"external"` // the database is an external etcd
}

// self is a node's place in its cluster: identity, certificate and CA.
type self struct {
	dir string // holds the files
	ca  *x509.Certificate
	key *ecdsa.PrivateKey

	mu   sync.Mutex // guards id and cert
	id   membership
	cert *tls.Certificate
}

// loadSelf reads dir/cluster; nil without error: the node is in no cluster.
func loadSelf(state string) (*self, error) {
	s := &self{dir: filepath.Join(state, identityDir)}
	data, err := os.ReadFile(filepath.Join(s.dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &s.id); err != nil || s.id.ID == "" || s.id.Node == "" {
		return nil, fmt.Errorf("%s: %w: restore it from a backup, or leave with `lunarctl cluster leave --force` and join anew",
			filepath.Join(s.dir, identityFile), ErrDamaged)
	}
	if err := s.loadKeys(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.dir, err)
	}
	return s, nil
}

func (s *self) loadKeys() (err error) {
	if s.ca, err = readWith(filepath.Join(s.dir, caFile), parseCert); err != nil {
		return err
	}
	if s.key, err = readWith(filepath.Join(s.dir, keyFile), parseKey); err != nil {
		return err
	}
	cert, err := readWith(filepath.Join(s.dir, certFile), parseCert)
	if err != nil {
		return err
	}
	if !s.key.PublicKey.Equal(cert.PublicKey) {
		return fmt.Errorf("%w: %s and %s do not belong together", ErrDamaged, certFile, keyFile)
	}
	s.use(cert)
	return nil
}

func readWith[T any](path string, parse func([]byte) (T, error)) (T, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		var none T
		return none, err
	}
	v, err := parse(data)
	if err != nil {
		return v, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return v, nil
}

// use makes cert the one that new connections show. The CA goes with it, so that a new node can
// check it by the token's fingerprint.
func (s *self) use(cert *x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cert = &tls.Certificate{Certificate: [][]byte{cert.Raw, s.ca.Raw}, PrivateKey: s.key, Leaf: cert}
}

func (s *self) certificate() *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cert
}

func (s *self) identity() membership {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

// update changes the identity in memory and on disk.
func (s *self) update(change func(*membership)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.id
	change(&id)
	if err := replaceJSON(filepath.Join(s.dir, identityFile), &id); err != nil {
		return err
	}
	s.id = id
	return nil
}

func (s *self) path(file string) string { return filepath.Join(s.dir, file) }

// newcomer is everything a node needs to be in a cluster.
type newcomer struct {
	membership
	ca     *x509.Certificate
	caKey  []byte // PEM, or nil
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	crl    []byte // DER
	secret []byte // the key of sealed secrets
}

// store writes the folder under a temporary name and renames it: a crash leaves it whole or absent.
func (n *newcomer) store(state string) error {
	temporary, final := filepath.Join(state, identityDir+".new"), filepath.Join(state, identityDir)
	if err := os.RemoveAll(temporary); err != nil {
		return err
	}
	if err := os.MkdirAll(temporary, 0o700); err != nil {
		return err
	}
	id, err := json.MarshalIndent(&n.membership, "", "  ")
	if err != nil {
		return err
	}
	key, err := keyPEM(n.key)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		identityFile: id, caFile: certPEM(n.ca), caKeyFile: n.caKey, certFile: certPEM(n.cert),
		keyFile: key, crlFile: n.crl, secretFile: n.secret,
	}
	for name, data := range files {
		if data == nil {
			continue
		}
		if err := writeSynced(filepath.Join(temporary, name), data); err != nil {
			return err
		}
	}
	if err := syncDir(temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, final); err != nil {
		return err
	}
	return syncDir(state)
}

// replaceFile changes a file so that a crash leaves the old or the new content.
func replaceFile(path string, data []byte) error {
	if err := writeSynced(path+".new", data); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func replaceJSON(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(path, data)
}

// setCert stores and uses a renewed certificate.
func (s *self) setCert(cert *x509.Certificate) error {
	if err := replaceFile(s.path(certFile), certPEM(cert)); err != nil {
		return err
	}
	s.use(cert)
	return nil
}

// left is the time for which the certificate is good.
func (s *self) left(now time.Time) time.Duration { return s.certificate().Leaf.NotAfter.Sub(now) }
