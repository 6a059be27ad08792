package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"testing"
	"time"
)

func TestWebUsers(t *testing.T) {
	db, ctx := open(t, t.TempDir()), t.Context()
	must(t, db.AddWebUser(ctx, WebUser{Name: "b", Role: "admin", Hash: "1"}))
	must(t, db.AddWebUser(ctx, WebUser{Name: "a", Role: "read-only", Hash: "2"}))
	wantErr(t, db.AddWebUser(ctx, WebUser{Name: "a"}), ErrExists)
	before, err := db.WebUser(ctx, "a")
	must(t, err)
	must(t, db.SetWebUserHash(ctx, "a", "3"))
	after, err := db.WebUser(ctx, "a")
	must(t, err)
	if after.Hash != "3" || after.Role != "read-only" || after.Revision == before.Revision {
		t.Errorf("before %+v, after %+v", before, after)
	}
	wantErr(t, db.SetWebUserHash(ctx, "c", "3"), ErrNotFound)
	all, err := db.WebUsers(ctx)
	must(t, err)
	if len(all) != 2 || all[0].Name != "a" || all[1].Name != "b" {
		t.Errorf("users %+v", all)
	}
	must(t, db.RemoveWebUser(ctx, "a"))
	wantErr(t, db.RemoveWebUser(ctx, "a"), ErrNotFound)
	_, err = db.WebUser(ctx, "a")
	wantErr(t, err, ErrNotFound)
	for i := range MaxWebUsers - 1 {
		must(t, db.AddWebUser(ctx, WebUser{Name: fmt.Sprintf("u%d", i)}))
	}
	wantErr(t, db.AddWebUser(ctx, WebUser{Name: "more"}), ErrFull)
}

// TestWebCertificate is good for browsers and not among nodes.
func TestWebCertificate(t *testing.T) {
	db, ctx := open(t, t.TempDir()), t.Context()
	key := newKey()
	if _, _, err := db.WebCertificate(ctx, nil, nil, key.Public(), time.Hour); db.CA() != nil {
		t.Errorf("a CA without a cluster, %v", err)
	} else {
		wantErr(t, err, ErrAlone)
	}
	a, err := newAuthority("0123", time.Now())
	must(t, err)
	r := clusterRecord{CA: certPEM(a.cert)}
	raw, err := keyPEM(a.key)
	must(t, err)
	r.CAKey = db.vault.Load().seal(raw, caUse)
	op, err := put(clusterKey, &r)
	must(t, err)
	_, err = db.commit(ctx, nil, op)
	must(t, err)
	cert, ca, err := db.WebCertificate(ctx, []string{"n1"}, []net.IP{net.IPv4(192, 0, 2, 1)}, key.Public(), time.Hour)
	must(t, err)
	for _, name := range []string{"n1", "192.0.2.1"} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool(ca), DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	wantErr(t, db.verify(&self{ca: ca}, &state, "", x509.ExtKeyUsageServerAuth), ErrCertificate)
}
