package iscsi

import (
	"strconv"
	"strings"

	"lunar/iscsi/pdu"
)

// params are a session's operational parameters, RFC 7143 §13. Sizes are bytes.
type params struct {
	HeaderDigest, DataDigest bool
	InitialR2T               bool
	ImmediateData            bool
	MaxRecvData              int // the initiator's MaxRecvDataSegmentLength
	MaxBurst, FirstBurst     int
	MaxR2T                   int
}

func defaultParams() params {
	return params{
		InitialR2T: true, ImmediateData: true, MaxRecvData: pdu.DefaultMaxData,
		MaxBurst: 262144, FirstBurst: 65536, MaxR2T: 1,
	}
}

// negotiation is the target's side of one negotiation sequence; it holds no connection.
type negotiation struct {
	params    params
	offer     params // the target's own values
	discovery bool
	seen      map[string]bool
	out       []byte // the answers, as text
	alias     string // InitiatorAlias
}

func newNegotiation(o *Options) *negotiation {
	offer := defaultParams()
	offer.MaxRecvData, offer.MaxBurst, offer.FirstBurst, offer.MaxR2T = o.MaxRecvData, o.MaxBurst, o.FirstBurst, o.MaxR2T
	return &negotiation{params: defaultParams(), offer: offer, seen: map[string]bool{}}
}

// keyRule makes the answer to one key; ok false means that there is none, as for declarations.
type keyRule func(n *negotiation, value string) (answer string, ok bool)

// operational holds every key of RFC 7143 §13 and RFC 7144 that is negotiated or declared in the
// operational stage. The keys that name the session are login.go's, CHAP's are chap.go's.
var operational = map[string]keyRule{
	"HeaderDigest":             digestRule(func(p *params) *bool { return &p.HeaderDigest }),
	"DataDigest":               digestRule(func(p *params) *bool { return &p.DataDigest }),
	"MaxConnections":           normalOnly(number(1, 65535, func(*negotiation, int) int { return 1 })),
	"ErrorRecoveryLevel":       number(0, 2, func(*negotiation, int) int { return 0 }),
	"InitialR2T":               normalOnly(boolean(func(n *negotiation, v bool) bool { n.params.InitialR2T = v; return v })),
	"ImmediateData":            normalOnly(boolean(func(n *negotiation, v bool) bool { n.params.ImmediateData = v; return v })),
	"DataPDUInOrder":           normalOnly(boolean(func(*negotiation, bool) bool { return true })),
	"DataSequenceInOrder":      normalOnly(boolean(func(*negotiation, bool) bool { return true })),
	"MaxRecvDataSegmentLength": declareRecv,
	"MaxBurstLength":           normalOnly(number(512, pdu.MaxDataLen, lowest(func(p *params) *int { return &p.MaxBurst }))),
	"FirstBurstLength":         normalOnly(number(512, pdu.MaxDataLen, lowest(func(p *params) *int { return &p.FirstBurst }))),
	"MaxOutstandingR2T":        normalOnly(number(1, 65535, lowest(func(p *params) *int { return &p.MaxR2T }))),
	"DefaultTime2Wait":         number(0, 3600, func(_ *negotiation, v int) int { return max(v, 2) }),
	"DefaultTime2Retain":       number(0, 3600, func(*negotiation, int) int { return 0 }), // error recovery level 0 retains nothing
	"TaskReporting":            normalOnly(choice("RFC3720")),
	"iSCSIProtocolLevel":       number(0, 31, func(_ *negotiation, v int) int { return min(v, 1) }),
	"InitiatorAlias":           func(n *negotiation, v string) (string, bool) { n.alias = v; return "", false },
	// Obsolete since RFC 7143 §13.25, which still wants an answer.
	"IFMarker":   func(*negotiation, string) (string, bool) { return "No", true },
	"OFMarker":   func(*negotiation, string) (string, bool) { return "No", true },
	"IFMarkInt":  func(*negotiation, string) (string, bool) { return pdu.Rejected, true },
	"OFMarkInt":  func(*negotiation, string) (string, bool) { return pdu.Rejected, true },
	"AuthMethod": func(*negotiation, string) (string, bool) { return pdu.Rejected, true }, // security stage only
}

// take handles one key of the operational stage. It returns false when the key was there before,
// which is a protocol error, §6.3.
func (n *negotiation) take(p pdu.Pair) bool {
	if n.seen[p.Key] {
		return false
	}
	n.seen[p.Key] = true
	rule := operational[p.Key]
	if rule == nil {
		n.answer(p.Key, pdu.NotUnderstood)
		return true
	}
	if answer, ok := rule(n, p.Value); ok {
		n.answer(p.Key, answer)
	}
	return true
}

func (n *negotiation) answer(key, value string) { n.out = pdu.AppendPair(n.out, key, value) }

// finish brings the parameters that depend on each other into line.
func (n *negotiation) finish() params {
	n.params.FirstBurst = min(n.params.FirstBurst, n.params.MaxBurst)
	return n.params
}

// normalOnly makes a key irrelevant in a discovery session, which moves no SCSI data.
func normalOnly(rule keyRule) keyRule {
	return func(n *negotiation, value string) (string, bool) {
		if n.discovery {
			return pdu.Irrelevant, true
		}
		return rule(n, value)
	}
}

func boolean(result func(*negotiation, bool) bool) keyRule {
	return func(n *negotiation, value string) (string, bool) {
		if value != "Yes" && value != "No" {
			return pdu.Rejected, true
		}
		if result(n, value == "Yes") {
			return "Yes", true
		}
		return "No", true
	}
}

func number(low, high int, result func(*negotiation, int) int) keyRule {
	return func(n *negotiation, value string) (string, bool) {
		v, ok := parseNumber(value)
		if !ok || v < low || v > high {
			return pdu.Rejected, true
		}
		return strconv.Itoa(result(n, v)), true
	}
}

// lowest is the result function Minimum with the target's own value.
func lowest(field func(*params) *int) func(*negotiation, int) int {
	return func(n *negotiation, v int) int {
		v = min(v, *field(&n.offer))
		*field(&n.params) = v
		return v
	}
}

func digestRule(field func(*params) *bool) keyRule {
	pick := choice("CRC32C", pdu.None)
	return func(n *negotiation, value string) (string, bool) {
		answer, _ := pick(n, value)
		*field(&n.params) = answer == "CRC32C"
		return answer, true
	}
}

// choice picks the first value of the initiator's list that the target knows, §6.2.1.
func choice(known ...string) keyRule {
	return func(_ *negotiation, list string) (string, bool) {
		for v := range strings.SplitSeq(list, ",") {
			for _, k := range known {
				if v == k {
					return v, true
				}
			}
		}
		return pdu.Rejected, true
	}
}

func declareRecv(n *negotiation, value string) (string, bool) {
	v, ok := parseNumber(value)
	if !ok || v < 512 || v > pdu.MaxDataLen {
		return pdu.Rejected, true
	}
	n.params.MaxRecvData = v
	return "", false
}

// parseNumber reads a decimal or hexadecimal constant, §6.1.
func parseNumber(s string) (int, bool) {
	base := 10
	if len(s) > 2 && (s[:2] == "0x" || s[:2] == "0X") {
		s, base = s[2:], 16
	}
	if s == "" || s[0] == '+' || s[0] == '-' {
		return 0, false
	}
	v, err := strconv.ParseUint(s, base, 32)
	return int(v), err == nil
}
