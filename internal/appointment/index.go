package appointment

import (
	"iter"
	"maps"
	"slices"
)

// index finds the appointments of one partition by what lists ask for.
type index struct {
	byProvider, byPatient map[string][]*entry
	byDate                map[string]map[string][]*entry // date, then provider
}

func newIndex() index {
	return index{byProvider: map[string][]*entry{}, byPatient: map[string][]*entry{}, byDate: map[string]map[string][]*entry{}}
}

// move puts an entry, which was before and is now as after, where it is found;
// before is nil for a new one.
func (x *index) move(en *entry, before, after *Appointment) {
	if before == nil || before.ProviderID != after.ProviderID {
		if before != nil {
			remove(x.byProvider, before.ProviderID, en)
		}
		x.byProvider[after.ProviderID] = append(x.byProvider[after.ProviderID], en)
	}
	if before == nil || before.PatientID != after.PatientID {
		if before != nil {
			remove(x.byPatient, before.PatientID, en)
		}
		x.byPatient[after.PatientID] = append(x.byPatient[after.PatientID], en)
	}
	if before == nil || before.Date != after.Date || before.ProviderID != after.ProviderID {
		if before != nil {
			if remove(x.byDate[before.Date], before.ProviderID, en); len(x.byDate[before.Date]) == 0 {
				delete(x.byDate, before.Date)
			}
		}
		if x.byDate[after.Date] == nil {
			x.byDate[after.Date] = map[string][]*entry{}
		}
		of := x.byDate[after.Date]
		of[after.ProviderID] = append(of[after.ProviderID], en)
	}
}

func remove(from map[string][]*entry, key string, en *entry) {
	rest := slices.DeleteFunc(from[key], func(o *entry) bool { return o == en })
	if len(rest) == 0 {
		delete(from, key)
		return
	}
	from[key] = rest
}

// candidates returns all entries that the filter can match, and few others. A
// patient has few appointments, a provider's day fewer than a provider or a day.
func (c *calendars) candidates(f Filter) iter.Seq[*entry] {
	switch {
	case f.PatientID != "":
		return slices.Values(c.index.byPatient[f.PatientID])
	case f.Date != "" && f.ProviderID != "":
		return slices.Values(c.index.byDate[f.Date][f.ProviderID])
	case f.ProviderID != "":
		return slices.Values(c.index.byProvider[f.ProviderID])
	case f.Date != "":
		return func(yield func(*entry) bool) {
			for _, entries := range c.index.byDate[f.Date] {
				for _, en := range entries {
					if !yield(en) {
						return
					}
				}
			}
		}
	}
	return maps.Values(c.byID)
}

func (f Filter) matches(a *Appointment) bool {
	return (f.Date == "" || a.Date == f.Date) && (f.PatientID == "" || a.PatientID == f.PatientID) &&
		(f.ProviderID == "" || a.ProviderID == f.ProviderID) && (f.Status == "" || a.Status == f.Status)
}
