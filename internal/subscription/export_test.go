package subscription

// Sweep is sweepOnce, which Run calls every minute.
var Sweep = (*Service).sweepOnce
