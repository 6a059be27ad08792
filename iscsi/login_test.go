package iscsi

import (
	"crypto/md5"
	"errors"
	"maps"
	"strconv"
	"testing"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// shelf is a directory of one target.
type shelf struct{ e *Export }

func (s shelf) export(name string) *Export {
	if s.e == nil || s.e.Name != name {
		return nil
	}
	return s.e
}

var (
	initiatorSecret = []byte("initiator-secret")
	targetSecret    = []byte("the-target-secret")
)

func mutualCHAP() *Credentials {
	return &Credentials{User: "joe", Secret: initiatorSecret, MutualUser: "lunar", MutualSecret: targetSecret}
}

func newTestLogin(access Access) *login {
	o := &Options{}
	o.fill()
	e := &Export{Name: testTarget, Alias: "disk one", Target: scsi.NewTarget(testTarget, scsi.TargetOptions{}), Access: access}
	l := newLogin(shelf{e}, o, 1)
	l.random = func(p []byte) {
		for i := range p {
			p[i] = byte(i + 1)
		}
	}
	return l
}

func request(t *testing.T, transit bool, from, to pdu.Stage, pairs ...string) loginStep {
	t.Helper()
	all, err := pdu.ParseText(text(pairs...))
	if err != nil {
		t.Fatal(err)
	}
	return loginStep{transit: transit, current: from, next: to, pairs: all}
}

var hello = []string{"InitiatorName", testInitiator, "TargetName", testTarget, "SessionType", "Normal"}

func with(base []string, more ...string) []string {
	return append(append([]string(nil), base...), more...)
}

func TestLoginWithoutSecurity(t *testing.T) {
	l := newTestLogin(nil)
	r := l.step(request(t, true, pdu.StageSecurity, pdu.StageOperational, with(hello, "AuthMethod", "CHAP,None")...))
	got := answers(t, r.text)
	if r.status != 0 || !r.transit || r.next != pdu.StageOperational {
		t.Fatalf("%+v", r)
	}
	if want := map[string]string{"AuthMethod": "None", "TargetPortalGroupTag": "1", "TargetAlias": "disk one"}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	r = l.step(request(t, true, pdu.StageOperational, pdu.StageFull, "MaxRecvDataSegmentLength", "4096", "HeaderDigest", "None"))
	got = answers(t, r.text)
	if r.status != 0 || !r.transit || r.next != pdu.StageFull || got["MaxRecvDataSegmentLength"] != "262144" || got["HeaderDigest"] != "None" {
		t.Errorf("%+v %v", r, got)
	}
}

// TestLoginStatus: each refusal has its own status, RFC 7143 §11.13.5.
func TestLoginStatus(t *testing.T) {
	locked := &Policy{CHAP: mutualCHAP()}
	for _, c := range []struct {
		name   string
		access Access
		req    loginStep
		want   pdu.LoginStatus
	}{
		{"no name", nil, request(t, true, 0, 1, "TargetName", testTarget), pdu.LoginMissingParameter},
		{"no target", nil, request(t, true, 0, 1, "InitiatorName", testInitiator), pdu.LoginMissingParameter},
		{"unknown target", nil, request(t, true, 0, 1, "InitiatorName", testInitiator, "TargetName", "iqn.x:y"), pdu.LoginNotFound},
		{"bad initiator name", nil, request(t, true, 0, 1, "InitiatorName", "me", "TargetName", testTarget), pdu.LoginInitiatorError},
		{"not on the list", &Policy{Initiators: []string{}}, request(t, true, 0, 1, hello...), pdu.LoginForbidden},
		{"session type", nil, request(t, true, 0, 1, with(hello[:4], "SessionType", "Party")...), pdu.LoginSessionType},
		{"key twice", nil, request(t, true, 0, 1, with(hello, "TargetName", testTarget)...), pdu.LoginInitiatorError},
		{"stage 2", nil, request(t, true, 0, 2, hello...), pdu.LoginInitiatorError},
		{"backwards", nil, request(t, true, 1, 0, hello...), pdu.LoginInitiatorError},
		{"security skipped", locked, request(t, true, 1, 3, hello...), pdu.LoginAuthFailure},
		{"only None offered", locked, request(t, true, 0, 1, with(hello, "AuthMethod", "None")...), pdu.LoginAuthFailure},
		{"AuthMethod left out", locked, request(t, true, 0, 3, hello...), pdu.LoginAuthFailure},
		{"CHAP wanted but not set up", nil, request(t, true, 0, 1, with(hello, "AuthMethod", "CHAP")...), pdu.LoginAuthFailure},
		{"CHAP keys out of order", locked, request(t, false, 0, 1, with(hello, "AuthMethod", "CHAP", "CHAP_R", "0x00")...), pdu.LoginAuthFailure},
	} {
		l := newTestLogin(c.access)
		if r := l.step(c.req); r.status != c.want || l.reason == nil || r.transit {
			t.Errorf("%s: status 0x%04x, want 0x%04x, reason %v", c.name, uint16(r.status), uint16(c.want), l.reason)
		}
	}
}

// exchange runs CHAP as an initiator that knows secret and returns the last reply.
func exchange(t *testing.T, l *login, alg, user string, secret []byte, mutual ...string) loginStep {
	t.Helper()
	r := l.step(request(t, false, 0, 0, with(hello, "AuthMethod", "CHAP,None")...))
	if got := answers(t, r.text); r.status != 0 || got["AuthMethod"] != "CHAP" {
		t.Fatalf("%+v %v", r, got)
	}
	r = l.step(request(t, false, 0, 0, "CHAP_A", alg))
	if r.status != 0 {
		return r
	}
	got := answers(t, r.text)
	challenge, err := decodeBinary(got["CHAP_C"])
	if err != nil {
		t.Fatal(err)
	}
	id, _ := strconv.Atoi(got["CHAP_I"])
	x := &chap{hash: chapHashes[got["CHAP_A"]]}
	return l.step(request(t, true, 0, 1, with([]string{"CHAP_N", user, "CHAP_R", encodeBinary(x.respond(byte(id), secret, challenge))}, mutual...)...))
}

func TestCHAP(t *testing.T) {
	for _, alg := range []string{"5", "7", "8", "6,99,5", "8,7,5"} {
		r := exchange(t, newTestLogin(&Policy{CHAP: mutualCHAP()}), alg, "joe", initiatorSecret)
		if r.status != 0 || !r.transit {
			t.Errorf("algorithm %s: %+v", alg, r)
		}
	}
}

func TestCHAPRefuses(t *testing.T) {
	for _, c := range []struct {
		name, alg, user string
		secret          []byte
		mutual          []string
	}{
		{"wrong secret", "5", "joe", []byte("initiator-secreT"), nil},
		{"wrong user", "5", "jim", initiatorSecret, nil},
		{"no algorithm in common", "6", "joe", initiatorSecret, nil},
		{"bad challenge", "5", "joe", initiatorSecret, []string{"CHAP_I", "1", "CHAP_C", "0xzz"}},
		{"bad identifier", "5", "joe", initiatorSecret, []string{"CHAP_I", "256", "CHAP_C", "0x0102"}},
	} {
		l := newTestLogin(&Policy{CHAP: mutualCHAP()})
		if r := exchange(t, l, c.alg, c.user, c.secret, c.mutual...); r.status != pdu.LoginAuthFailure || !errors.Is(l.reason, errCHAP) {
			t.Errorf("%s: %+v, %v", c.name, r, l.reason)
		}
	}
}

func TestMutualCHAP(t *testing.T) {
	l := newTestLogin(&Policy{CHAP: mutualCHAP()})
	r := exchange(t, l, "5", "joe", initiatorSecret, "CHAP_I", "200", "CHAP_C", "0bAQIDBA==")
	got := answers(t, r.text)
	sum := md5.Sum(append(append([]byte{200}, targetSecret...), 1, 2, 3, 4))
	if r.status != 0 || !r.transit || got["CHAP_N"] != "lunar" || got["CHAP_R"] != encodeBinary(sum[:]) {
		t.Errorf("%+v %v", r, got)
	}
}

// TestCHAPReflection: an initiator that has the target answer its own challenge is refused, §9.2.1.
func TestCHAPReflection(t *testing.T) {
	l := newTestLogin(&Policy{CHAP: mutualCHAP()})
	challenge := make([]byte, 1+challengeLen)
	l.random(challenge)
	r := exchange(t, l, "5", "joe", initiatorSecret, "CHAP_I", "7", "CHAP_C", encodeBinary(challenge[1:]))
	if r.status != pdu.LoginAuthFailure || len(r.text) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestMutualCHAPWithoutSecret(t *testing.T) {
	l := newTestLogin(&Policy{CHAP: &Credentials{User: "joe", Secret: initiatorSecret}})
	if r := exchange(t, l, "5", "joe", initiatorSecret, "CHAP_I", "7", "CHAP_C", "0x01020304"); r.status != pdu.LoginAuthFailure {
		t.Errorf("%+v", r)
	}
}

// TestCHAPStays: without a proof the security stage does not end, whatever the initiator asks.
func TestCHAPStays(t *testing.T) {
	l := newTestLogin(&Policy{CHAP: mutualCHAP()})
	r := l.step(request(t, true, 0, 1, with(hello, "AuthMethod", "CHAP")...))
	if r.status != 0 || r.transit {
		t.Fatalf("%+v", r)
	}
	if r = l.step(request(t, true, 1, 3)); r.status != pdu.LoginInitiatorError {
		t.Errorf("%+v", r)
	}
}

func TestCredentialsCheck(t *testing.T) {
	for _, c := range []*Credentials{
		{}, {User: "a"}, {User: "a", Secret: []byte("s"), MutualUser: "b"},
		{User: "a", Secret: []byte("s"), MutualUser: "b", MutualSecret: []byte("s")},
	} {
		if err := c.check(); !errors.Is(err, ErrBadCredential) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := mutualCHAP().check(); err != nil {
		t.Error(err)
	}
}

// FuzzLogin feeds requests of any stage and text to one login with CHAP: the full feature phase
// is out of reach without the secret.
func FuzzLogin(f *testing.F) {
	f.Add([]byte{0x81}, text(with(hello, "AuthMethod", "CHAP,None")...), text("CHAP_A", "5"), text("CHAP_N", "joe", "CHAP_R", "0x00"))
	f.Add([]byte{0x87}, text(hello...), text("HeaderDigest", "CRC32C,None"), text("MaxBurstLength", "1"))
	f.Add([]byte{0x00}, text("InitiatorName", testInitiator, "SessionType", "Discovery"), []byte{}, text("X-a", "b"))
	f.Fuzz(func(t *testing.T, flags, a, b, c []byte) {
		l := newTestLogin(&Policy{CHAP: mutualCHAP()})
		for i, p := range [][]byte{a, b, c, a, b, c} {
			pairs, err := pdu.ParseText(p)
			if err != nil {
				return
			}
			fl := byte(0x87)
			if len(flags) > 0 {
				fl = flags[i%len(flags)]
			}
			r := l.step(loginStep{transit: fl&0x80 != 0, current: pdu.Stage(fl >> 2 & 3), next: pdu.Stage(fl & 3), pairs: pairs})
			if len(r.text) > pdu.DefaultMaxData {
				t.Fatalf("an answer of %d bytes", len(r.text))
			}
			if r.status != 0 {
				return
			}
			if r.transit && !l.discovery {
				t.Fatalf("got to stage %d without the secret", r.next)
			}
		}
	})
}
