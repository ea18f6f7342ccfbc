package subscription

// Sweep is sweepOnce, which Run calls every minute.
var Sweep = (*Service).sweepOnce

// LimitRules sets how many rules a record may have, before it is used.
func LimitRules(s *Service, most int) { s.maxRules = most }
