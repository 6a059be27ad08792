package iscsi

import "lunar/iscsi/pdu"

// runLogout ends the session, RFC 7143 §11.14. With one connection in it, ending the connection is
// the same; recovery needs an error recovery level above 0.
func runLogout(c *conn, h *pdu.Header, _ []byte) {
	req := pdu.LogoutRequest{Header: h}
	f := c.frame(pdu.OpLogoutResponse, pdu.FlagFinal, h.ITT())
	f.stat = statTake
	result := c.logoutResult(req)
	pdu.LogoutResponse{Header: f.head()}.SetResult(result)
	if result == pdu.LogoutDone {
		f.last = true
		c.rx.paused = true
	}
	c.send(f)
}

func (c *conn) logoutResult(req pdu.LogoutRequest) pdu.LogoutResult {
	switch {
	case req.Reason() == pdu.LogoutRecovery:
		return pdu.LogoutNoRecovery
	case req.Reason() == pdu.LogoutConnection && req.CID() != c.cid:
		return pdu.LogoutNoCID
	case req.Reason() > pdu.LogoutRecovery:
		return pdu.LogoutFailed
	}
	return pdu.LogoutDone
}
