package iscsi

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"lunar/iscsi/pdu"
)

// directory is what a login has to know of the server.
type directory interface {
	export(name string) *Export
}

// login is the target's side of a login phase, RFC 7143 §6.3: text in, text out. It knows no
// connection, and one request follows the other.
type login struct {
	directory directory
	options   *Options
	group     uint16
	random    func([]byte)

	begun     bool
	stage     pdu.Stage
	declared  bool // MaxRecvDataSegmentLength went out
	initiator string
	target    string
	discovery bool
	exported  *Export
	creds     *Credentials // what CHAP asks; nil asks nothing
	method    string       // the chosen AuthMethod
	chap      chap
	neg       *negotiation
	out       []byte
	reason    error // of a refusal, for the log
}

// loginStep is a Login Request or Response without its header's other fields.
type loginStep struct {
	transit       bool
	current, next pdu.Stage
	pairs         []pdu.Pair // of a request
	text          []byte     // of a response
	status        pdu.LoginStatus
}

func newLogin(d directory, o *Options, group uint16) *login {
	return &login{
		directory: d, options: o, group: group, neg: newNegotiation(o),
		random: func(p []byte) { _, _ = rand.Read(p) },
	}
}

// identifying are the keys of the first request that say who wants what, §13.
var identifying = map[string]bool{
	"InitiatorName": true, "TargetName": true, "SessionType": true, "TargetAddress": true,
}

// step answers one request. After a status that is not LoginSuccess, or the transit to the full
// feature phase, the login is over.
func (l *login) step(req loginStep) loginStep {
	l.out = nil
	if status := l.take(req); status != pdu.LoginSuccess {
		return loginStep{current: req.current, next: req.next, status: status}
	}
	l.out = append(l.out, l.neg.out...)
	l.neg.out = nil
	if len(l.out) > pdu.DefaultMaxData {
		l.reason = fmt.Errorf("%w: too many keys", errProtocol)
		return loginStep{current: req.current, next: req.next, status: pdu.LoginInitiatorError}
	}
	reply := loginStep{current: req.current, text: l.out, transit: req.transit && l.ready()}
	if reply.transit {
		reply.next, l.stage = req.next, req.next
	}
	return reply
}

func (l *login) take(req loginStep) pdu.LoginStatus {
	if !l.begun {
		if status := l.begin(req); status != pdu.LoginSuccess {
			return status
		}
	}
	if req.current != l.stage || req.transit && !validTransit(req.current, req.next) {
		l.reason = fmt.Errorf("%w: stage %d to %d, expected %d", errProtocol, req.current, req.next, l.stage)
		return pdu.LoginInitiatorError
	}
	if req.current == pdu.StageSecurity {
		return l.secure(req)
	}
	return l.operate(req.pairs)
}

func validTransit(from, to pdu.Stage) bool {
	return to > from && (to == pdu.StageOperational || to == pdu.StageFull)
}

// ready tells whether the current stage may end.
func (l *login) ready() bool {
	return l.stage != pdu.StageSecurity || l.creds == nil || l.chap.state == chapDone
}

// begin learns from the first request who logs in to what.
func (l *login) begin(req loginStep) pdu.LoginStatus {
	l.begun = true
	l.stage = req.current
	named := map[string]string{}
	for _, p := range req.pairs {
		if identifying[p.Key] {
			if _, twice := named[p.Key]; twice {
				return l.refuse(pdu.LoginInitiatorError, "key %s twice", p.Key)
			}
			named[p.Key] = p.Value
		}
	}
	l.initiator = strings.ToLower(named["InitiatorName"])
	if l.initiator == "" {
		return l.refuse(pdu.LoginMissingParameter, "no InitiatorName")
	}
	if err := ValidName(l.initiator); err != nil {
		return l.refuse(pdu.LoginInitiatorError, "InitiatorName: %v", err)
	}
	if status := l.choose(named); status != pdu.LoginSuccess {
		return status
	}
	if l.stage != pdu.StageSecurity && l.creds != nil {
		return l.refuse(pdu.LoginAuthFailure, "CHAP is required and the security stage was skipped")
	}
	return pdu.LoginSuccess
}

func (l *login) choose(named map[string]string) pdu.LoginStatus {
	switch named["SessionType"] {
	case "Discovery":
		l.discovery, l.neg.discovery = true, true
		l.creds = l.options.DiscoveryCHAP
		return pdu.LoginSuccess
	case "", "Normal":
	default:
		return l.refuse(pdu.LoginSessionType, "SessionType %.32q", named["SessionType"])
	}
	l.target = strings.ToLower(named["TargetName"])
	if l.target == "" {
		return l.refuse(pdu.LoginMissingParameter, "no TargetName")
	}
	if l.exported = l.directory.export(l.target); l.exported == nil {
		return l.refuse(pdu.LoginNotFound, "no such target")
	}
	if !l.exported.allows(l.initiator) {
		return l.refuse(pdu.LoginForbidden, "the initiator is not on the target's list")
	}
	l.creds = l.exported.credentials(l.initiator)
	l.put("TargetPortalGroupTag", strconv.Itoa(int(l.group)))
	if l.exported.Alias != "" {
		l.put("TargetAlias", l.exported.Alias)
	}
	return pdu.LoginSuccess
}

func (l *login) put(key, value string) { l.out = pdu.AppendPair(l.out, key, value) }

func (l *login) refuse(status pdu.LoginStatus, format string, args ...any) pdu.LoginStatus {
	l.reason = fmt.Errorf("iscsi: login refused: "+format, args...)
	return status
}

// secure handles a request of the security stage, §12.
func (l *login) secure(req loginStep) pdu.LoginStatus {
	keys := map[string]string{}
	for _, p := range req.pairs {
		switch {
		case identifying[p.Key]:
		case p.Key == "AuthMethod":
			if status := l.chooseMethod(p.Value); status != pdu.LoginSuccess {
				return status
			}
		case strings.HasPrefix(p.Key, "CHAP_"):
			if _, twice := keys[p.Key]; twice {
				return l.refuse(pdu.LoginInitiatorError, "key %s twice", p.Key)
			}
			keys[p.Key] = p.Value
		case !l.neg.take(p):
			return l.refuse(pdu.LoginInitiatorError, "key %s twice", p.Key)
		}
	}
	if status := l.authenticate(keys); status != pdu.LoginSuccess {
		return status
	}
	if req.transit && l.creds != nil && l.method == "" {
		return l.refuse(pdu.LoginAuthFailure, "CHAP is required")
	}
	return pdu.LoginSuccess
}

// chooseMethod takes None only if nothing else is asked of the initiator.
func (l *login) chooseMethod(list string) pdu.LoginStatus {
	want := pdu.None
	if l.creds != nil {
		want = "CHAP"
	}
	if l.method != "" {
		return l.refuse(pdu.LoginInitiatorError, "AuthMethod twice")
	}
	if answer, _ := choice(want)(nil, list); answer != want {
		return l.refuse(pdu.LoginAuthFailure, "AuthMethod %s is required, offered is %.64q", want, list)
	}
	l.method = want
	l.chap = chap{creds: l.creds, random: l.random}
	l.put("AuthMethod", want)
	return pdu.LoginSuccess
}

func (l *login) authenticate(keys map[string]string) pdu.LoginStatus {
	if l.method != "CHAP" {
		if len(keys) > 0 {
			return l.refuse(pdu.LoginAuthFailure, "CHAP keys without AuthMethod=CHAP")
		}
		return pdu.LoginSuccess
	}
	if l.chap.state == chapDone && len(keys) == 0 {
		return pdu.LoginSuccess
	}
	pairs, err := l.chap.step(keys)
	if err != nil {
		l.reason = err
		return pdu.LoginAuthFailure
	}
	for _, p := range pairs {
		l.put(p.Key, p.Value)
	}
	return pdu.LoginSuccess
}

// operate handles a request of the operational stage and declares the target's own limit once.
func (l *login) operate(pairs []pdu.Pair) pdu.LoginStatus {
	for _, p := range pairs {
		if !identifying[p.Key] && !l.neg.take(p) {
			return l.refuse(pdu.LoginInitiatorError, "key %s twice", p.Key)
		}
	}
	if !l.declared {
		l.declared = true
		l.put("MaxRecvDataSegmentLength", strconv.Itoa(l.options.MaxRecvData))
	}
	return pdu.LoginSuccess
}

// LogValue tells the log who tried what.
func (l *login) LogValue() slog.Value {
	if l == nil {
		return slog.Value{}
	}
	return slog.GroupValue(slog.String("initiator", l.initiator), slog.String("target", l.target),
		slog.Bool("discovery", l.discovery), slog.Any("reason", l.reason))
}
