// Package web is the console that lunard serves to browsers.
//
// It adds to the control API what a browser needs and nothing else: sign-in, sessions, roles, protection against other
// sites, and static files. Each call is given to the control API's own handler, the one behind lunarctl; calls that are
// not in this package's table do not exist here. The caller implements Users, gives the handler of the control API, serves
// Handler by TLS or on a loopback address, and calls Close when its HTTP server has ended.
package web
