//go:build !unix

package endpoint

// alive can't be told here without reading.
func (cn *conn) alive() bool { return true }
