package cluster

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const webUserKeys = root + "web-user/" // name → WebUser

// MaxWebUsers bounds those who may sign in at the web console.
const MaxWebUsers = 256

// WebUser may sign in at the web console of every node.
type WebUser struct {
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Hash    string    `json:"hash"` // of the password; package web makes and checks it
	Changed time.Time `json:"changed"`

	Revision int64 `json:"-"` // another one after each change
}

// WebUsers lists them, ordered by name.
func (db *DB) WebUsers(ctx context.Context) ([]WebUser, error) {
	records, _, err := list[WebUser](ctx, db, webUserKeys)
	if err != nil {
		return nil, fmt.Errorf("cluster: list web users: %w", err)
	}
	return values(records), nil
}

// WebUser reads one. ErrNotFound: there is none of that name.
func (db *DB) WebUser(ctx context.Context, name string) (WebUser, error) {
	r, err := get[WebUser](ctx, db, webUserKeys+name)
	if err != nil {
		return WebUser{}, fmt.Errorf("cluster: web user %s: %w", name, err)
	}
	r.value.Revision = r.revision
	return r.value, nil
}

// AddWebUser stores a new one. ErrExists: the name is taken.
func (db *DB) AddWebUser(ctx context.Context, u WebUser) error {
	u.Changed = time.Now().UTC()
	op, err := put(webUserKeys+u.Name, &u)
	if err != nil {
		return fmt.Errorf("cluster: add web user: %w", err)
	}
	err = retry(func() (bool, error) {
		all, revision, err := list[WebUser](ctx, db, webUserKeys)
		switch {
		case err != nil:
			return false, err
		case slices.ContainsFunc(all, func(r record[WebUser]) bool { return r.value.Name == u.Name }):
			return false, ErrExists
		case len(all) >= MaxWebUsers:
			return false, fmt.Errorf("%w: at most %d", ErrFull, MaxWebUsers)
		}
		return db.commit(ctx, []clientv3.Cmp{absent(webUserKeys + u.Name), unchangedSince(webUserKeys, revision)}, op)
	})
	if err != nil {
		return fmt.Errorf("cluster: add web user %s: %w", u.Name, err)
	}
	return nil
}

// SetWebUserHash gives one another password. ErrNotFound: there is none of that name.
func (db *DB) SetWebUserHash(ctx context.Context, name, hash string) error {
	_, err := update(ctx, db, webUserKeys+name, func(u *WebUser) ([]clientv3.Cmp, error) {
		u.Hash, u.Changed = hash, time.Now().UTC()
		return nil, nil
	})
	if err != nil {
		return fmt.Errorf("cluster: web user %s: %w", name, err)
	}
	return nil
}

// RemoveWebUser removes one. ErrNotFound: there is none of that name.
func (db *DB) RemoveWebUser(ctx context.Context, name string) error {
	ok, err := db.commit(ctx, []clientv3.Cmp{present(webUserKeys + name)}, clientv3.OpDelete(webUserKeys+name))
	if err == nil && !ok {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("cluster: remove web user %s: %w", name, err)
	}
	return nil
}

// webUnit marks certificates of web consoles: nodes do not take them for a node's.
const webUnit = "Web console"

// WebCertificate is to be served to browsers at these names and addresses, by the cluster's CA, which is given with
// it. ErrAlone: there is no cluster.
func (db *DB) WebCertificate(ctx context.Context, names []string, ips []net.IP, public crypto.PublicKey, life time.Duration) (cert, ca *x509.Certificate, err error) {
	r, err := db.clusterRecord(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster: certificate for browsers: %w", err)
	}
	a, err := db.authority(&r.value)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster: certificate for browsers: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{Organization: []string{"Lunar"}, OrganizationalUnit: []string{webUnit}, CommonName: "Web console of " + db.node},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: names, IPAddresses: ips,
	}
	if template.NotBefore.Before(a.cert.NotBefore) {
		template.NotBefore = a.cert.NotBefore
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster: certificate for browsers: %w", err)
	}
	cert, err = x509.ParseCertificate(der)
	return cert, a.cert, err
}

// CA is the cluster's, nil without a cluster.
func (db *DB) CA() *x509.Certificate {
	if s := db.self.Load(); s != nil {
		return s.ca
	}
	return nil
}
