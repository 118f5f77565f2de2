// SPDX-License-Identifier: Apache-2.0

// Package ejbca stands where spire-server's EJBCA plug-in looks for its client, which no Go proxy offers. The tests
// never configure that plug-in; whoever does is told that the client is not in this build.
package ejbca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
)

var errAbsent = errors.New("the EJBCA client is not in this build")

// Authenticator is what a client logs in with.
type Authenticator interface {
	GetHTTPClient() (*http.Client, error)
}

// MTLSAuthenticatorBuilder makes no authenticator.
type MTLSAuthenticatorBuilder struct{}

// NewMTLSAuthenticatorBuilder returns a builder whose Build fails.
func NewMTLSAuthenticatorBuilder() *MTLSAuthenticatorBuilder { return &MTLSAuthenticatorBuilder{} }

// WithClientCertificate changes nothing.
func (b *MTLSAuthenticatorBuilder) WithClientCertificate(*tls.Certificate) *MTLSAuthenticatorBuilder {
	return b
}

// WithCaCertificates changes nothing.
func (b *MTLSAuthenticatorBuilder) WithCaCertificates([]*x509.Certificate) *MTLSAuthenticatorBuilder {
	return b
}

// Build says that there is no client.
func (b *MTLSAuthenticatorBuilder) Build() (Authenticator, error) { return nil, errAbsent }

// Configuration is what a client would be made from.
type Configuration struct{ Host string }

// NewConfiguration returns an empty one.
func NewConfiguration() *Configuration { return &Configuration{} }

// SetAuthenticator changes nothing.
func (c *Configuration) SetAuthenticator(Authenticator) {}

// APIClient is a client without a server.
type APIClient struct{ V1CertificateApi *V1CertificateApiService }

// NewAPIClient says that there is no client.
func NewAPIClient(*Configuration) (*APIClient, error) { return nil, errAbsent }

// V1CertificateApiService is the one part of the client that the plug-in uses.
type V1CertificateApiService struct{}

// EnrollPkcs10Certificate returns a request that fails.
func (s *V1CertificateApiService) EnrollPkcs10Certificate(context.Context) ApiEnrollPkcs10CertificateRequest {
	return ApiEnrollPkcs10CertificateRequest{}
}

// ApiEnrollPkcs10CertificateRequest is a request that fails.
type ApiEnrollPkcs10CertificateRequest struct{}

// EnrollCertificateRestRequest changes nothing.
func (r ApiEnrollPkcs10CertificateRequest) EnrollCertificateRestRequest(EnrollCertificateRestRequest) ApiEnrollPkcs10CertificateRequest {
	return r
}

// Execute says that there is no client.
func (r ApiEnrollPkcs10CertificateRequest) Execute() (*CertificateRestResponse, *http.Response, error) {
	return nil, nil, errAbsent
}

// EnrollCertificateRestRequest forgets what is set.
type EnrollCertificateRestRequest struct{}

// NewEnrollCertificateRestRequest returns an empty one.
func NewEnrollCertificateRestRequest() *EnrollCertificateRestRequest {
	return &EnrollCertificateRestRequest{}
}

// The setters change nothing.
func (r *EnrollCertificateRestRequest) SetUsername(string)                 {}
func (r *EnrollCertificateRestRequest) SetPassword(string)                 {}
func (r *EnrollCertificateRestRequest) SetCertificateRequest(string)       {}
func (r *EnrollCertificateRestRequest) SetCertificateAuthorityName(string) {}
func (r *EnrollCertificateRestRequest) SetCertificateProfileName(string)   {}
func (r *EnrollCertificateRestRequest) SetEndEntityProfileName(string)     {}
func (r *EnrollCertificateRestRequest) SetIncludeChain(bool)               {}
func (r *EnrollCertificateRestRequest) SetAccountBindingId(string)         {}

// CertificateRestResponse holds nothing.
type CertificateRestResponse struct{ CertificateChain []string }

// GetResponseFormat returns none.
func (r *CertificateRestResponse) GetResponseFormat() string { return "" }

// GetCertificate returns none.
func (r *CertificateRestResponse) GetCertificate() string { return "" }

// GenericOpenAPIError is the error that a server would answer with.
type GenericOpenAPIError struct{}

func (e *GenericOpenAPIError) Error() string { return errAbsent.Error() }

// Body returns none.
func (e *GenericOpenAPIError) Body() []byte { return nil }
