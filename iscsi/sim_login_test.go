package iscsi

import (
	"slices"
	"strconv"

	"lunar/iscsi/pdu"
)

// simLoginStep is one Login Request.
type simLoginStep struct {
	flags byte
	text  []byte
}

// startLogin draws the session's parameters and how many requests it takes to say them.
func (c *simConn) startLogin() {
	who := []string{"InitiatorName", c.port.name, "TargetName", testTarget, "SessionType", "Normal"}
	if c.chance(16) {
		who[3] += "-not"
		c.mayRefuse = []pdu.LoginStatus{pdu.LoginNotFound}
	}
	keys := c.drawKeys()
	last := pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull)
	switch all := append(text(who...), text(keys...)...); c.rnd(4) {
	case 0:
		c.logins = []simLoginStep{
			{pdu.LoginFlags(true, false, pdu.StageSecurity, pdu.StageOperational), text(append(who, "AuthMethod", "None")...)},
			{last, text(keys...)},
		}
	case 1:
		cut := c.rnd(len(all))
		c.logins = []simLoginStep{{pdu.LoginFlags(false, true, pdu.StageOperational, 0), all[:cut]}, {last, all[cut:]}}
	default:
		c.logins = []simLoginStep{{last, all}}
	}
	c.sendLogin()
}

func (c *simConn) drawKeys() (keys []string) {
	c.offered = map[string]string{}
	draw := func(key string, values ...string) {
		if !c.chance(6) {
			c.offered[key] = values[c.rnd(len(values))]
			keys = append(keys, key, c.offered[key])
		}
	}
	draw("HeaderDigest", "None", "CRC32C", "CRC32C,None", "None,CRC32C")
	draw("DataDigest", "None", "CRC32C", "CRC32C,None", "None,CRC32C")
	draw("InitialR2T", "Yes", "No", "No")
	draw("ImmediateData", "Yes", "Yes", "No")
	draw("MaxBurstLength", "512", "4096", "16384", "65536")
	draw("FirstBurstLength", "512", "1024", "8192", "65536")
	draw("MaxOutstandingR2T", "1", "2", "5")
	draw("MaxRecvDataSegmentLength", "512", "4096", "65536")
	return keys
}

// enterFull takes the parameters over as answered.
func (c *simConn) enterFull() {
	pairs, err := pdu.ParseText(c.answered)
	if err != nil {
		c.fail("LoginEnds", "%v", err)
	}
	got := map[string]string{}
	for _, p := range pairs {
		got[p.Key] = p.Value
	}
	p := defaultParams()
	number := func(key string, field *int) {
		offer, ok := c.offered[key]
		if !ok {
			return
		}
		*field, _ = strconv.Atoi(got[key])
		if most, _ := strconv.Atoi(offer); *field < 1 || *field > most {
			c.fail("Negotiated", "%s=%s, offered was %s", key, got[key], offer)
		}
	}
	number("MaxBurstLength", &p.MaxBurst)
	number("FirstBurstLength", &p.FirstBurst)
	number("MaxOutstandingR2T", &p.MaxR2T)
	p.FirstBurst = min(p.FirstBurst, p.MaxBurst)
	p.InitialR2T = got["InitialR2T"] != "No"
	p.ImmediateData = got["ImmediateData"] != "No"
	c.wire.headerDigest, c.wire.dataDigest = got["HeaderDigest"] == "CRC32C", got["DataDigest"] == "CRC32C"
	c.targetMax, _ = strconv.Atoi(got["MaxRecvDataSegmentLength"])
	if v, ok := c.offered["MaxRecvDataSegmentLength"]; ok {
		c.recvMax, _ = strconv.Atoi(v)
	}
	c.params, c.phase = p, simFull
	c.world.entered(c)
}

func (c *simConn) sendLogin() {
	s := c.logins[0]
	c.logins = c.logins[1:]
	c.wire.exp = c.statSN
	h := c.wire.loginHeader(s.flags)
	c.write(h, s.text, nil)
}

func (c *simConn) onLogin(h *pdu.Header, data []byte) {
	r := pdu.LoginResponse{Header: h}
	if c.phase != simLogin {
		c.fail("OneStatus", "a login response in the full feature phase")
		return
	}
	if s := r.Status(); s != pdu.LoginSuccess || c.mayRefuse != nil && len(c.logins) == 0 {
		if c.doomed, c.fatal = true, true; !slices.Contains(c.mayRefuse, s) {
			c.fail("LoginTaken", "status %#x", uint16(s))
		}
		return
	}
	c.answered = append(c.answered, data...)
	switch {
	case len(c.logins) > 0:
		c.sendLogin()
	case !h.Final() || r.TSIH() == 0:
		c.fail("LoginEnds", "flags %02x TSIH %d", h.Flags(), r.TSIH())
	default:
		c.tsih = r.TSIH()
		c.enterFull()
	}
}
