package dedup

import (
	"context"
	"strings"
)

// removeDeleted removes what is left of the savesets that were deleted when the mark began.
//
// INVARIANT G6: all that only they reached was taken out before. A manifest goes before its states: the states alone mean
// nothing, the manifest alone would be a saveset again.
func (c *collection) removeDeleted(ctx context.Context) error {
	for _, m := range c.deleted {
		if err := stopped(ctx); err != nil {
			return err
		}
		if err := c.s.deleteObject(ctx, manifestName(m.ID)); err != nil && KindOf(err) != NotFound {
			return err
		}
		c.s.sets.drop(m.ID)
		c.report.Manifests++
	}
	return nil
}

// removeOrphanStates removes states whose manifest is gone.
func (s *Store) removeOrphanStates(ctx context.Context) error {
	there := make(map[string]struct{})
	for o, err := range s.objects(ctx, manifestPrefix) {
		if err != nil {
			return wrap("list manifests", "", err)
		}
		there[strings.TrimPrefix(o.name, manifestPrefix)] = struct{}{}
	}
	var orphans []string
	for o, err := range s.objects(ctx, statePrefix) {
		if err != nil {
			return wrap("list states", "", err)
		}
		hex, _, _ := strings.Cut(strings.TrimPrefix(o.name, statePrefix), "/")
		id, err := ParseSavesetID(hex)
		if err != nil {
			continue // not ours
		}
		_, known := s.sets.get(id) // its manifest may have come since
		if _, ok := there[hex]; !ok && !known {
			orphans = append(orphans, o.name)
		}
	}
	for _, name := range orphans {
		if err := stopped(ctx); err != nil {
			return err
		}
		if err := s.deleteObject(ctx, name); err != nil && KindOf(err) != NotFound {
			return err
		}
	}
	return nil
}
