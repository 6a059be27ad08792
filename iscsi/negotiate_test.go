package iscsi

import (
	"testing"

	"lunar/iscsi/pdu"
)

func negotiate(t *testing.T, discovery bool, pairs ...string) (map[string]string, params) {
	t.Helper()
	o := Options{}
	o.fill()
	n := newNegotiation(&o)
	n.discovery = discovery
	for i := 0; i < len(pairs); i += 2 {
		if !n.take(pdu.Pair{Key: pairs[i], Value: pairs[i+1]}) {
			t.Fatalf("%s was refused", pairs[i])
		}
	}
	return answers(t, n.out), n.finish()
}

// TestNegotiation holds every key to its result function, RFC 7143 §13.
func TestNegotiation(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"HeaderDigest", "CRC32C,None", "CRC32C"},
		{"HeaderDigest", "None,CRC32C", "None"},
		{"HeaderDigest", "X-md5,CRC32C", "CRC32C"},
		{"HeaderDigest", "X-md5", "Reject"},
		{"DataDigest", "CRC32C", "CRC32C"},
		{"MaxConnections", "8", "1"},
		{"MaxConnections", "0", "Reject"},
		{"MaxConnections", "65536", "Reject"},
		{"ErrorRecoveryLevel", "2", "0"},
		{"ErrorRecoveryLevel", "3", "Reject"},
		{"InitialR2T", "No", "No"},
		{"InitialR2T", "Yes", "Yes"},
		{"InitialR2T", "yes", "Reject"},
		{"ImmediateData", "Yes", "Yes"},
		{"ImmediateData", "No", "No"},
		{"ImmediateData", "", "Reject"},
		{"DataPDUInOrder", "No", "Yes"},
		{"DataSequenceInOrder", "No", "Yes"},
		{"MaxBurstLength", "262144", "262144"},
		{"MaxBurstLength", "0x4000", "16384"},
		{"MaxBurstLength", "16777215", "1048576"},
		{"MaxBurstLength", "16777216", "Reject"},
		{"MaxBurstLength", "511", "Reject"},
		{"MaxBurstLength", "-1", "Reject"},
		{"MaxBurstLength", "99999999999999999999", "Reject"},
		{"FirstBurstLength", "65536", "65536"},
		{"MaxOutstandingR2T", "100", "4"},
		{"MaxOutstandingR2T", "1", "1"},
		{"DefaultTime2Wait", "0", "2"},
		{"DefaultTime2Wait", "5", "5"},
		{"DefaultTime2Retain", "20", "0"},
		{"TaskReporting", "FastAbort,RFC3720", "RFC3720"},
		{"TaskReporting", "FastAbort", "Reject"},
		{"iSCSIProtocolLevel", "2", "1"},
		{"IFMarker", "Yes", "No"},
		{"OFMarkInt", "1~2", "Reject"},
		{"X-com.example.foo", "1", "NotUnderstood"},
		{"NoSuchKey", "1", "NotUnderstood"},
		{"MaxRecvDataSegmentLength", "511", "Reject"},
	} {
		if got, _ := negotiate(t, false, c.key, c.value); got[c.key] != c.want {
			t.Errorf("%s=%s is answered %q, want %q", c.key, c.value, got[c.key], c.want)
		}
	}
}

func TestNegotiatedValues(t *testing.T) {
	out, p := negotiate(t, false, "MaxRecvDataSegmentLength", "4096", "MaxBurstLength", "8192", "FirstBurstLength", "16384",
		"InitialR2T", "No", "ImmediateData", "No", "MaxOutstandingR2T", "3", "DataDigest", "CRC32C")
	want := params{DataDigest: true, MaxRecvData: 4096, MaxBurst: 8192, FirstBurst: 8192, MaxR2T: 3}
	if p != want {
		t.Errorf("%+v, want %+v", p, want)
	}
	if _, there := out["MaxRecvDataSegmentLength"]; there {
		t.Error("a declaration was answered")
	}
}

// TestDiscoveryIrrelevant: keys about SCSI data mean nothing in a discovery session, §13.
func TestDiscoveryIrrelevant(t *testing.T) {
	for _, key := range []string{"MaxConnections", "InitialR2T", "ImmediateData", "MaxBurstLength", "FirstBurstLength", "MaxOutstandingR2T"} {
		if got, _ := negotiate(t, true, key, "1"); got[key] != pdu.Irrelevant {
			t.Errorf("%s is answered %q", key, got[key])
		}
	}
}

func TestKeyTwice(t *testing.T) {
	o := Options{}
	o.fill()
	n := newNegotiation(&o)
	if !n.take(pdu.Pair{Key: "InitialR2T", Value: "No"}) || n.take(pdu.Pair{Key: "InitialR2T", Value: "Yes"}) {
		t.Error("a key was negotiated twice")
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"iqn.2001-04.com.example:disk": true, "eui.02004567A425678D": true, "naa.52004567BA64678D": true,
		"iqn.": false, "iqn": false, "foo.bar": false, "iqn.a b": false, "iqn.a\n": false, "iqn.a=b": false, "": false,
	} {
		if err := ValidName(name); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}
