package api

// Opener is a kind of what opens the store.
type Opener string

// Openers of a store.
const (
	OpenerKeyFile     Opener = "key_file"
	OpenerPassword    Opener = "password"
	OpenerRecoveryKey Opener = "recovery_key"
)

// StoreUnlock opens a store that is locked. Without any secret the appliance tries again what it tries at its start: the
// key file was put back, say, or the disk was mounted.
type StoreUnlock struct {
	Password    string `json:"password,omitempty" maxLength:"1024" doc:"the store's password"`
	RecoveryKey string `json:"recovery_key,omitempty" maxLength:"256" doc:"the store's recovery key"`
	Create      bool   `json:"create,omitempty" doc:"make the store, which is not made yet, with this password; for superusers"`
}

// StoreOpeners say what shall open the store from now on. The store's data stay as they are.
type StoreOpeners struct {
	Password string   `json:"password,omitempty" maxLength:"1024" doc:"a new password, in the place of the one that opens the store now"`
	KeyFile  bool     `json:"key_file,omitempty" doc:"make a new key file where the configuration says, in the place of the one that opens the store now"`
	Remove   []Opener `json:"remove,omitempty" maxItems:"3" enum:"key_file,password,recovery_key" doc:"these open the store no more; a key file or a password must remain"`
}

// StoreKeys says what opens the store, and which store keys its data are under.
type StoreKeys struct {
	Encrypted bool       `json:"encrypted" doc:"what is new is encrypted"`
	Openers   []Opener   `json:"openers" doc:"what opens the store; nothing where it is not encrypted"`
	KeyFile   string     `json:"key_file,omitempty" doc:"where the key file lies on the appliance, when one opens the store"`
	Keys      []StoreKey `json:"keys" doc:"oldest first"`
}

// StoreKey is one numbered key of the store. All that is new is under the current one; garbage collection writes what is
// under an older one anew.
type StoreKey struct {
	Number     uint32 `json:"number"`
	Current    bool   `json:"current"`
	Encrypted  bool   `json:"encrypted" doc:"false: of the time before encryption was switched on"`
	Containers int64  `json:"containers" doc:"containers under this key"`
	Objects    int64  `json:"objects" doc:"manifests and other small objects under this key"`
}

// RecoveryKey is a new recovery key. It is told once and kept nowhere.
type RecoveryKey struct {
	RecoveryKey string `json:"recovery_key" doc:"write it down and keep it away from the appliance; it opens the store"`
}
