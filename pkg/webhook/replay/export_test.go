package replay

import "context"

// WithStep has a replayer call step before each thing it does, and die of its
// error.
func (c Config) WithStep(step func(string) error) Config {
	c.step = step
	return c
}

// Serve takes over as if the group had said so, once.
func (r *Replayer) Serve(ctx context.Context) error { return r.serve(ctx) }
