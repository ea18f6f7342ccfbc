//go:build unix

package endpoint

import (
	"crypto/tls"
	"syscall"
)

// alive says whether an idle connection can be used again: it can't if the endpoint has closed it, or has sent what
// nobody asked for. The idea is that of github.com/go-sql-driver/mysql, which looks before it writes, too.
func (cn *conn) alive() bool {
	raw := cn.Conn
	if secure, ok := raw.(*tls.Conn); ok {
		raw = secure.NetConn()
	}
	file, ok := raw.(syscall.Conn)
	if !ok {
		return true // a network in memory
	}
	descriptor, err := file.SyscallConn()
	if err != nil {
		return false
	}
	silent := false
	err = descriptor.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		silent = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK
		return true
	})
	return err == nil && silent
}
