package sender

import "sync"

// slots are the places of all requests under way. Who finds none stands in line.
type slots struct {
	mu   sync.Mutex
	size int
	used int
	line []*lane
}

// A lane's first place comes from all, further ones from three fourths of them,
// and of what is free of those a lane may have a fourth. However many lanes take
// all that they may, and never give it back, there are places left for others. It
// is the dynamic threshold of switches with shared memory (Choudhury and Hahne,
// 1998).
const share = 4

// take takes a place for a lane that has had so many already, or lines the lane
// up.
func (s *slots) take(ln *lane, has int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := s.size - s.used
	if free > 0 && (has == 0 || has < s.most(free)) {
		s.used++
		return true
	}
	if has == 0 && !ln.lined {
		ln.lined = true
		s.line = append(s.line, ln)
	}
	return false
}

// most is how many places a lane may have of which further ones are taken, given
// how many are free.
func (s *slots) most(free int) int { return (free - s.size/share) / share }

// keep says whether a lane that has so many places may use one of them once more:
// not if somebody has none, nor if it has more than it could take now. Else who
// came first would have more than others for as long as there is work for all.
func (s *slots) keep(has int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.line) == 0 && (has == 1 || has-1 <= s.most(s.size-s.used+1))
}

// give gives a place back.
func (s *slots) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
}

// next returns the lane whose turn it is if there is a place, or nil.
func (s *slots) next() *lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.line) == 0 || s.used >= s.size {
		return nil
	}
	ln := s.line[0]
	s.line[0] = nil
	s.line = s.line[1:]
	ln.lined = false
	return ln
}
